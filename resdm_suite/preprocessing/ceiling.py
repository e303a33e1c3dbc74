"""The best estimate of a phantom's PET that its MRI and prompt allow: the least expected squared error.

The MRI shows a person's anatomy and tissues, and through them severity; the prompt states age and sex. Of the truth,
only these are taken as known. Load, tau stage and status are not: by Bayes' rule over latent people drawn from the
population, p(cause | severity, age, sex) ∝ p(cause, diagnosis) p(severity | diagnosis, stage) p(age, sex | diagnosis).
Further attributes multiply it by their probability given the diagnosis (diagnosis, MMSE, education) or the causes
(plasma, APOE ε4). The ventricles follow from severity and age with an independent error, so they add nothing about a
cause. The amyloid tracer, the person's uptake, white matter and resolution are unknown, so they are at their means.

The expected uptake is rendered over the person's tissues and deformation, at the mean resolution and without noise.
It is put on the grid like a real PET, through the transform that preprocessing estimated for the T1. A posterior mean
is the estimate of least squared error, except for two non-linear steps: the division by the reference region and the
clipping at the end of the SUVR range.

Nothing is trained, chosen or tuned by it, and it is no input of any model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage, stats

from resdm.settings import TRACERS, ConfigError
from resdm_suite.anatomy import CENTRE_MM
from resdm_suite.cohorts.phantom import people
from resdm_suite.cohorts.phantom.dataset import settings_digest
from resdm_suite.cohorts.phantom.scanner import Visit, make_visit
from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing.resampling import Scan
from resdm_suite.preprocessing.suvr import pet_on_grid
from resdm_suite.profiles import Config
from resdm_suite.records import read_json

DRAWS = 200_000
"""Number of latent people that represent the population."""

_QUANTILES = 32  # of the tau stage that represent its posterior: uptake is sigmoid in it

_LABELS = {
    "amyloid": {"18FAV45": 1 - people.FLORBETABEN_SHARE, "18FFBB": people.FLORBETABEN_SHARE},
    "tau": {"18FAV1451": 1.0},
}


def draw_population(seed: int, n: int = DRAWS) -> dict[str, Any]:
    """Draw latent causes of people from the phantoms' population.

    Returns
    -------
    dict of str to ndarray (n,)
        diagnosis (position in the generator's list), positive, load, stage, severity at the first visit; foretold:
        severity without its error; progression: how severity grows with time.
    """
    rng = np.random.default_rng(seed)
    disease = people.draw_disease(rng.random(n), rng.random(n))
    return {"diagnosis": disease["diagnosis"], **people.draw_causes(rng, disease)}


def posterior(
    population: dict[str, Any], *, severity: float, age: float, sex: str, years: float = 0.0, coupling: float = 1.0,
    known: dict[str, Any] | None = None, strength: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Posterior probability of each person of a `draw_population`, given an MRI and a prompt.

    ``severity`` is the neurodegeneration that the MRI shows, ``age`` that at this session, ``years`` the time since
    the first session. With probability 1 − ``coupling`` severity is that of an independent person. ``known`` holds
    attributes that are known too (None: missing), of which plasma has the ``strength`` of its settings.

    Returns
    -------
    ndarray (n,)
        Weights that sum to 1.
    """
    groups = people.DIAGNOSES.values()
    women = np.array([group["women"] for group in groups])
    prior = np.array([stats.norm.pdf(age - years, *group["age"]) for group in groups])
    prior *= (women if sex == "F" else 1 - women) * _given_diagnosis(known or {}, years)
    expected = people.causes_after(population | {"severity": population["foretold"]}, years)["severity"]
    shown = stats.norm.pdf(severity, expected, people.SEVERITY_SD)
    weight = prior[population["diagnosis"]] * (coupling * shown + (1 - coupling) * shown.mean())
    plasma, apoe4 = ((known or {}).get(name) for name in ("plasma", "apoe4"))
    if plasma is not None:
        shown = (plasma - people.plasma_value(0)) / (people.plasma_value(1) - people.plasma_value(0))
        error = max((1 - strength**2) ** 0.5, 0.01)  # plasma is rounded to this
        weight = weight * stats.norm.pdf(shown, strength * people.pathology(population), error)
    if apoe4 is not None:
        carriers = np.where(population["positive"], people.CARRIERS[True], people.CARRIERS[False])
        weight = weight * (carriers if apoe4 == "carrier" else 1 - carriers)
    return weight / weight.sum()


def _given_diagnosis(known: dict[str, Any], years: float) -> np.ndarray:
    """Probability of the known diagnosis, MMSE and education under each diagnosis; see `people.draw_person`."""
    likelihood = np.ones(len(people.DIAGNOSES))
    for i, (diagnosis, group) in enumerate(people.DIAGNOSES.items()):
        if known.get("diagnosis") is not None:
            likelihood[i] *= diagnosis == known["diagnosis"]
        if (education := known.get("education")) is not None:
            likelihood[i] *= np.diff(stats.norm(*group["education"]).cdf(_rounded(education, *people.EDUCATION)))[0]
        if (mmse := known.get("mmse")) is not None:
            shape, scale = people.points_lost(group)
            progress = years * people.LATENT[diagnosis]["severity"] * stats.halfnorm.ppf((np.arange(64) + 0.5) / 64)
            low, high = sorted(30 - bound for bound in _rounded(mmse, *people.MMSE))
            chances = [stats.gamma.cdf(bound - progress, shape, scale=scale) for bound in (low, high)]
            likelihood[i] *= np.mean(chances[1] - chances[0])
    return likelihood


def _rounded(value: float, low: float, high: float) -> tuple[float, float]:
    """Between which numbers a value lay before it was clipped and rounded."""
    return (value - 0.5 if value > low else -np.inf), (value + 0.5 if value < high else np.inf)


def expected_pet(
    config: Config, row: dict[str, Any], population: dict[str, Any], truth: dict[str, Any], known: Sequence[str] = ()
) -> dict[str, tuple[np.ndarray, float]]:
    """Expected PET of a session, and the probability of its planted status.

    Parameters
    ----------
    config : Config
    row : dict
        Row of ``index.csv`` of preprocessed phantoms.
    population, truth : dict
        From `draw_population` and `read_truth`.
    known : sequence of str
        Attributes that are taken as known, besides the MRI, age and sex.

    Returns
    -------
    dict
        Tracer → PET (X, Y, Z) on the profile's grid, intensities in [0, 1], and p(positive).

    Raises
    ------
    FileNotFoundError, ValueError
        A person without truth, or with the truth of other phantoms.
    """
    person = read_truth(config, row["person"])
    record = next(visit for visit in person["sessions"] if visit["session"] == row["session"])
    visit = make_visit(config, int(row["person"].removeprefix("sub-")) - 1, person, record)
    years, coupling = int(row["session"].removeprefix("ses-M")) / 12, config.cohort.phantom.coupling
    shown = {"severity": record["severity"], "age": record["age"], "sex": person["sex"]}
    given, planted = person | record | person.get("attributes", {}), config.cohort.phantom.plasma
    shown |= {"known": {name: given[name] for name in known}, "strength": planted.strength if planted else 0.0}
    weight = posterior(population, **shown, years=years, coupling=coupling)
    causes = people.causes_after(population, years)
    order = np.argsort(causes["stage"])
    middles = np.searchsorted(np.cumsum(weight[order]), (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    expected = {"load": float(weight @ causes["load"]), "stage": causes["stage"][order][middles]}
    status = {"amyloid": population["positive"], "tau": causes["stage"] > truth["stage_cut"]}

    t1 = config.volumes / row["t1w"]
    mni_to_t1 = np.array(read_json(sidecar_path(t1))["transform"])
    names = [(tracer, name, share) for tracer in TRACERS for name, share in _LABELS[tracer].items()]
    maps = [visit.uptake(tracer, name, **expected) for tracer, name, _ in names]
    scans = _scanned(visit, maps, np.array(record["scans"]["t1w"]["world_to_mni"]))
    pets = dict.fromkeys(TRACERS, 0.0)
    for (tracer, _, share), scan in zip(names, scans, strict=True):
        pets[tracer] = pets[tracer] + share * pet_on_grid(scan, mni_to_t1, tracer, config.preprocess, str(t1))[0]
    return {tracer: (pets[tracer].astype(np.float32), float(weight @ status[tracer])) for tracer in TRACERS}


def _scanned(visit: Visit, maps: list[np.ndarray], world_to_mni: np.ndarray) -> list[Scan]:
    """Maps of the anatomy grid at a scanner's mean resolution, along the axes of the T1's world."""
    settings = visit.settings
    voxel = np.array(settings.pet_voxel_mm)
    shape = np.ceil(visit.field_of_view(pet=True) / voxel).astype(int)
    affine = np.diag([*voxel, 1.0])
    middle = np.linalg.inv(world_to_mni) @ [*CENTRE_MM, 1]
    affine[:3, 3] = middle[:3] - voxel * (shape - 1) / 2
    sampled = visit.sample([(uptake, 1) for uptake in maps], world_to_mni, tuple(shape), affine)
    sigma = np.mean(settings.pet_fwhm_mm) / 2.3548 / voxel
    return [Scan(ndimage.gaussian_filter(image, sigma), affine) for image in sampled]


def read_truth(config: Config, name: str = "truth") -> dict[str, Any]:
    """``truth.json`` of the cohort, or the truth of a person.

    Raises
    ------
    ConfigError
        A cohort of real people.
    FileNotFoundError, ValueError
        Phantoms without truth, or with the truth of other phantoms.
    """
    if config.cohort.kind != "phantom":
        fault = f"profile {config.profile!r}: cohort.kind is {config.cohort.kind}"
        raise ConfigError(f"{fault}; the ceiling follows from the truth, which is known of phantoms alone")
    path, run = config.work / "truth" / f"{name}.json", f"run `resdm phantom {config.profile}`"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no truth of these phantoms; {run} first")
    truth = read_json(path)
    if truth.get("digest") != settings_digest(config):
        raise ValueError(
            f"{path}: the truth of phantoms of other settings or of another revision; {run}, then preprocess them again"
        )
    return truth
