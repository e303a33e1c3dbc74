"""Regional SUVR of real and synthetic PET by every set of regions of the profile, and the Centiloid scale."""

from collections.abc import Iterable

import pandas as pd

from resdm_suite.anatomy import REFERENCE, Grid
from resdm_suite.evaluation.atlas import CENTILOID, FETCHED, centiloid, centiloid_regions, load_atlas
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.evaluation.suvr import suvr_pairs
from resdm_suite.profiles import Config

BUILT_IN, VOIS = "built-in", "Centiloid VOIs"
CALIBRATED, UNCALIBRATED = "Centiloid", "uncalibrated Centiloid estimate"
"""Names of the amyloid scale: by an equation of the profile for its pipeline, and by a published one."""


def quantities(config: Config, methods: Iterable[str]) -> pd.DataFrame:
    """Every quantity of every test session's real and synthetic PET; of methods, or ``template``.

    Columns are method, person, session, tracer, regions (``built-in``, the atlas's name or ``Centiloid VOIs``), region,
    unit (``SUVR`` or ``CL``), real, synthetic. Amyloid tracers with an equation have one region of unit ``CL``:
    ``Centiloid`` where ``fidelity.centiloid.equations`` has the tracer, else ``uncalibrated Centiloid estimate``, by
    the published equation; over the volumes of ``fidelity.centiloid``, or the built-in summary without them. The
    built-in reference region, 1 by construction, is left out. Built-in regions of real PET are measured before
    preprocessing clipped the SUVR range, others after. Raises `AtlasError` for regions that the profile names and that
    are not available.
    """
    grid, index, extra = Grid.of(config.preprocess.grid), read_index(config), config.fidelity
    labels = index.set_index(["person", "session"])["amyloid_tracer"].to_dict()

    atlas, vois, calibrated = None, None, {}
    if extra.atlas is not None:  # relative paths start at the folder that holds configs/
        source = extra.atlas if extra.atlas in FETCHED else str(config.root / extra.atlas)
        atlas = load_atlas(source, grid, None if extra.labels is None else config.root / extra.labels)
    if extra.centiloid is not None:
        masks = (config.root / path for path in (extra.centiloid.cortex, extra.centiloid.reference))
        vois, calibrated = centiloid_regions(*masks, grid), extra.centiloid.equations
    equations = CENTILOID | calibrated

    rows = []
    for method in methods:
        for head, volumes, means in suvr_pairs(config, method, index):
            tracer, label = head["tracer"], labels[head["person"], head["session"]]
            pairs = {(BUILT_IN, name, "SUVR"): [one[name] for one in means] for name in means[0]}
            del pairs[BUILT_IN, REFERENCE[tracer], "SUVR"]
            if atlas is not None:
                real, synthetic = map(atlas.means, volumes)
                pairs |= {(atlas.name, name, "SUVR"): [real[name], synthetic[name]] for name in real}
            if tracer == "amyloid" and label in equations:
                if vois is None:
                    ratios = [one["summary"] for one in means]
                    pairs[BUILT_IN, UNCALIBRATED, "CL"] = [centiloid(ratio, label) for ratio in ratios]
                else:
                    ratios = [one["cortex"] / one["reference"] for one in map(vois.means, volumes)]
                    name = CALIBRATED if label in calibrated else UNCALIBRATED
                    pairs[VOIS, name, "CL"] = [centiloid(ratio, label, equations) for ratio in ratios]
            rows += [[*head.values(), *key, *pair] for key, pair in pairs.items()]
    columns = ["method", "person", "session", "tracer", "regions", "region", "unit", "real", "synthetic"]
    return pd.DataFrame(rows, columns=columns)
