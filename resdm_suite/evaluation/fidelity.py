"""Quantities of real and of synthetic PET: SUVR by every set of regions of the profile, and the Centiloid scale."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from resdm_suite.anatomy import REFERENCE, Grid
from resdm_suite.evaluation.atlas import CENTILOID, FETCHED, centiloid, centiloid_regions, load_atlas
from resdm_suite.evaluation.image_quality import read_index, read_volume, volume_pairs
from resdm_suite.evaluation.suvr import real_regional_means, regional_means, sidecar_range, to_suvr
from resdm_suite.profiles import Config

BUILT_IN, VOIS = "built-in", "Centiloid VOIs"
CALIBRATED, UNCALIBRATED = "Centiloid", "uncalibrated Centiloid estimate"
"""Names of the amyloid scale: by an equation that the profile gives for its own pipeline, and by a published one."""


def quantities(config: Config, methods: Iterable[str]) -> pd.DataFrame:
    """Every quantity of every test session's real and synthetic PET.

    Parameters
    ----------
    config : Config
        ``fidelity`` says which regions beside the built-in ones.
    methods : iterable of str
        Names of methods, or ``template``.

    Returns
    -------
    DataFrame
        method, person, session, tracer, regions (``built-in``, the atlas's name or ``Centiloid VOIs``), region, unit
        (``SUVR`` or ``CL``), real, synthetic. Amyloid tracers with an equation have one region of unit ``CL``:
        ``Centiloid`` where ``fidelity.centiloid.equations`` has the tracer, else ``uncalibrated Centiloid estimate``,
        by the published equation; over the volumes of ``fidelity.centiloid``, or the built-in summary where the profile
        names none. The built-in reference region, 1 by construction, is left out. Built-in regions of real PET are
        measured before preprocessing clipped the SUVR range, others after.

    Raises
    ------
    AtlasError
        Regions that the profile names and that cannot be had.
    """
    grid, index, extra = Grid.of(config.preprocess.grid), read_index(config), config.fidelity
    labels = index.set_index(["person", "session"])["amyloid_tracer"].to_dict()
    atlas = None if extra.atlas is None else load_atlas(_at(config, extra.atlas), grid, _path(config, extra.labels))
    scale, vois = extra.centiloid, None
    own = {} if scale is None else scale.equations
    equations = CENTILOID | own
    if scale is not None:
        vois = centiloid_regions(_path(config, scale.cortex), _path(config, scale.reference), grid)

    def measured(
        volume: np.ndarray, means: dict[str, float], tracer: str, label: str
    ) -> dict[tuple[str, str, str], float]:
        """Regions, region, unit → value of one PET (X, Y, Z) in SUVR, of which the built-in ``means`` are known."""
        found = {(BUILT_IN, name, "SUVR"): mean for name, mean in means.items() if name != REFERENCE[tracer]}
        if atlas is not None:
            found |= {(atlas.name, name, "SUVR"): mean for name, mean in atlas.means(volume).items()}
        if tracer == "amyloid" and label in equations:
            if vois is None:
                found[BUILT_IN, UNCALIBRATED, "CL"] = centiloid(means["summary"], label)
            else:
                means, name = vois.means(volume), CALIBRATED if label in own else UNCALIBRATED
                found[VOIS, name, "CL"] = centiloid(means["cortex"] / means["reference"], label, equations)
        return found

    rows = []
    for method in methods:
        for person, session, tracer, real_path, synthetic_path in volume_pairs(config, method, index):
            suvr_range = sidecar_range(real_path)  # intensities of a prediction stand for what the real ones stand for
            volumes = [to_suvr(read_volume(path, grid), suvr_range) for path in (real_path, synthetic_path)]
            means = (real_regional_means(real_path, volumes[0], grid, tracer), regional_means(volumes[1], grid, tracer))
            real, synthetic = (
                measured(*one, tracer, labels[person, session]) for one in zip(volumes, means, strict=True)
            )
            who = {"method": method, "person": person, "session": session, "tracer": tracer}
            rows += [
                who | dict(zip(("regions", "region", "unit"), key, strict=True))
                | {"real": real[key], "synthetic": synthetic[key]}
                for key in real
            ]  # fmt: skip
    return pd.DataFrame(rows)


def _path(config: Config, path: str | None) -> str | None:
    """A path of the profile: relative ones start at the folder that holds configs/."""
    return None if path is None else str(config.root / path)


def _at(config: Config, atlas: str) -> str | None:
    return atlas if atlas in FETCHED else _path(config, atlas)
