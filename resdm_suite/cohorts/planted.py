"""What stands between an effect in the phantoms' tissue and the slope that people's regional SUVR can show.

The planted effects of ``truth.json`` are those of the uptake, at the anatomy of one age and at the scanner's
resolution. Two things beside them, by the generator's own model: the cortex thins with age, so a slope over people of
different ages is that of uptake and anatomy together; and a region holds white matter and fluid beside its grey matter,
and the scanner blurs them into each other, so its SUVR shows a part of what happens in the grey matter.
"""

from __future__ import annotations

import math

from resdm.settings import TRACERS
from resdm_suite.cohorts import phantom
from resdm_suite.profiles import Config


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
    for tracer in TRACERS:
        older, younger = (phantom._average(config, tracer, thinned=decades)[1] for decades in (0.5, -0.5))
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
    for tracer in TRACERS:
        (reference, none, _), (_, one, _) = (phantom._average(config, tracer, sex=sex) for sex in (0.0, 1.0))
        tissue = {region: value / reference for region, value in phantom._FIELDS[f"{tracer}_sex"].items()}
        shares[tracer] = {
            region: (one[region] - none[region]) / tissue[region] if region in tissue else math.nan for region in none
        }
    return shares
