"""What stands between an effect in the phantoms' tissue and the slope that people's regional SUVR can show.

The planted effects of ``truth.json`` are those of the uptake, at the anatomy of one age and at the scanner's
resolution. Two things beside them, by the generator's own model: the cortex thins with age, so a slope over people of
different ages is that of uptake and anatomy together; and a region holds white matter and fluid beside its grey matter,
and the scanner blurs them into each other, so its SUVR shows a part of what happens in the grey matter.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from resdm.cohort import phantom
from resdm.config import Config, ConfigError

_TRACERS = {"amyloid": "18FAV45", "tau": "18FAV1451"}


def thinning_slope(config: Config) -> dict[str, dict[str, float]]:
    """SUVR per decade that cortical thinning alone costs, by tracer and region, in a person of average anatomy.

    The same person, resolution and pathology as the planted effects, half a decade before and after the age at which
    the planted age effect is zero, with the uptake of that age. Wider ventricles are not in it.

    Parameters
    ----------
    config : Config
        Needs ``cohort.phantom``.
    """
    slopes = {}
    for tracer in _TRACERS:
        older, younger = (_scanned(config, tracer, thinned=decades)[1] for decades in (0.5, -0.5))
        slopes[tracer] = {region: older[region] - younger[region] for region in older}
    return slopes


def grey_share(config: Config) -> dict[str, dict[str, float]]:
    """Share of an effect in a region's grey matter that its SUVR shows at the scanner's resolution.

    Measured on the sex effect, which is in grey matter alone, at unit strength; NaN for regions that it leaves out.

    Parameters
    ----------
    config : Config
        Needs ``cohort.phantom``.
    """
    shares = {}
    for tracer in _TRACERS:
        (reference, none), (_, one) = (_scanned(config, tracer, sex=sex) for sex in (0.0, 1.0))
        tissue = {region: value / reference for region, value in phantom._FIELDS[f"{tracer}_sex"].items()}
        shares[tracer] = {
            region: (one[region] - none[region]) / tissue[region] if region in tissue else math.nan for region in none
        }
    return shares


def _scanned(config: Config, tracer: str, *, thinned: float = 0.0, sex: float = 0.0) -> tuple[float, dict[str, float]]:
    """Reference mean and regional SUVR of the person of the planted effects, aged ``thinned`` decades in anatomy."""
    settings = config.cohort.phantom
    if settings is None:
        raise ConfigError(f"profile {config.profile!r}: cohort.phantom is missing; only phantoms have planted effects")
    template = phantom._template(settings.anatomy_mm)
    tissues = phantom._tissues(template, settings.age_atrophy * thinned, 0.4, 0.0)
    uptake = phantom._uptake(template, tissues, tracer, _TRACERS[tracer], load=0.45, stage=1.0, white=0.0, own=0.0,
                             decades=0.0, sex=sex)  # fmt: skip
    sigma = np.mean(settings.pet_fwhm_mm) / 2.3548 / settings.anatomy_mm
    return phantom._regional(ndimage.gaussian_filter(uptake, sigma), template.labels, template.names, tracer)[:2]
