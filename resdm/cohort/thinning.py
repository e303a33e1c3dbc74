"""What a decade does to regional SUVR without the tracer's part in it: the cortex thins, so less of it is in a region.

The planted age effect of ``truth.json`` is that of the uptake, at the anatomy of one age. People of different ages
differ in both, so a slope over people is the sum; this is the other summand, by the generator's own model.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from resdm.cohort import phantom
from resdm.config import Config, ConfigError


def thinning_slope(config: Config) -> dict[str, dict[str, float]]:
    """SUVR per decade that cortical thinning alone costs, by tracer and region, in a person of average anatomy.

    The same person, resolution and pathology as the planted effects, half a decade before and after the age at which
    the planted age effect is zero, with the uptake of that age. Wider ventricles are not in it.

    Parameters
    ----------
    config : Config
        Needs ``cohort.phantom``.
    """
    settings = config.cohort.phantom
    if settings is None:
        raise ConfigError(f"profile {config.profile!r}: cohort.phantom is missing; thinning is that of phantoms")
    template = phantom._template(settings.anatomy_mm)
    sigma = np.mean(settings.pet_fwhm_mm) / 2.3548 / settings.anatomy_mm
    slopes = {}
    for tracer, name in (("amyloid", "18FAV45"), ("tau", "18FAV1451")):
        older, younger = (
            phantom._regional(
                ndimage.gaussian_filter(
                    phantom._uptake(
                        template, phantom._tissues(template, decades, 0.4, 0.0), tracer, name,
                        load=0.45, stage=1.0, white=0.0, own=0.0, decades=0.0, sex=0.0,
                    ),
                    sigma,
                ),
                template.labels, template.names, tracer,
            )[1]
            for decades in (0.5, -0.5)
        )  # fmt: skip
        slopes[tracer] = {region: older[region] - younger[region] for region in older}
    return slopes
