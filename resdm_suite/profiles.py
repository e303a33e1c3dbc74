"""Configuration: every switch of the suite, as frozen dataclasses read from strict YAML.

A profile is one YAML file in ``configs/``. An unknown key, a value of the wrong type or out of range is a
`ConfigError` that names the file and the key, raised before any work starts. What is not in the YAML has
the default written here, with its reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from resdm.settings import (
    AGE_RANGE,
    SEXES,
    TRACERS,
    ConfigError,
    MethodConfig,
    Precision,
    TrainingConfig,
    build_settings,
    method_from_dict,
    suggest,
    to_dict,
)
from resdm.settings import derive_seed as derive_seed

CONDITIONS = {
    "factual": "the person's own age and sex",
    "no_age": "sex only",
    "no_sex": "age only",
    "tracer_only": "neither age nor sex",
    "wrong_sex": "own age, the other sex",
    "shuffled_age": "own sex, the age of somebody else of the list",
    "shuffled": "age and sex of somebody else of the list",
}
"""What a prompt says. Beside these, ``age_<years>`` says one age for everyone, ``sex_F`` and ``sex_M`` one sex."""

Source = Literal["bids", "adni", "openneuro", "csv", "released"]
SOURCES: tuple[str, ...] = typing.get_args(Source)
"""How the data of a cohort may lie."""

FEWEST = 5
"""People that a summary of people must have to be drawn where single people are not."""


def check_condition(name: str, where: str) -> None:
    """Raise `ConfigError` where a name is no condition of `CONDITIONS` or of its two families."""
    age, sex = re.fullmatch(r"age_(\d+(?:\.\d+)?)", name), re.fullmatch(f"sex_({'|'.join(SEXES)})", name)
    if age and not AGE_RANGE[0] <= float(age[1]) <= AGE_RANGE[1]:
        raise ConfigError(f"{where}: {name!r} is outside {AGE_RANGE[0]:.0f}–{AGE_RANGE[1]:.0f} years")
    if not (name in CONDITIONS or age or sex):
        raise ConfigError(
            f"{where}: no condition {name!r}{suggest(name, CONDITIONS)}; there are: {', '.join(CONDITIONS)}, "
            f"age_<years>, {', '.join(f'sex_{value}' for value in SEXES)}"
        )


# ── the cohort ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class GridConfig:
    """The common space: a cube of voxels over the MNI brain."""

    shape: tuple[int, int, int] = (128, 128, 128)
    voxel_mm: float = 1.5


@dataclass(frozen=True)
class PhantomConfig:
    """What the phantom generator makes. Effects are large on purpose: small ones cannot be learned in minutes."""

    people: int = 200
    anatomy_mm: float = 2.0  # grid on which a person is built before being "scanned"
    t1_voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.2)
    pet_voxel_mm: tuple[float, float, float] = (2.0, 2.0, 3.3)
    pet_fwhm_mm: tuple[float, float] = (6.0, 8.0)  # range over scanners
    scalp: bool = False
    single_pet: float = 0.10  # fraction of people with one PET only
    repeat_visits: float = 0.12  # fraction of people with a second session
    age_effect: float = 1.0  # multiplies the planted age slope; 0 makes a null phantom
    sex_effect: float = 1.0  # multiplies the planted sex effect; 0 makes a null phantom
    age_atrophy: float = 1.0  # multiplies the atrophy that age brings; 0 too in a null phantom, where age would else
    # tell atrophy of age from that of disease, and so foretell uptake
    coupling: float = 1.0  # probability that a person's atrophy is of the person's own disease; 0: it foretells nothing
    noise: float = 1.0  # multiplies the noise of T1 and PET; 0 for tests that need exact values
    pet_frames: int = 1  # more than 1: PET files are 4D, frames to be averaged


@dataclass(frozen=True)
class SplitConfig:
    """Fractions of people. Stratified by diagnosis, tracers present and sex."""

    test: float = 0.20  # the paper's 254 of 1274 sets are 0.199; not used where there are folds
    validation: float = 0.10
    folds: int | None = None  # k-fold: the people in k parts, of which one is the test set
    fold: int = 0  # which, from 0


@dataclass(frozen=True)
class MatchConfig:
    """Which scans of a person make a session, where a source knows the days on which they were made."""

    window_days: float = 365.0  # from the T1 scan to each PET at most; ±180, ±365 and ±730 occur, the paper says none
    same_visit: bool = False  # only scans that the source files under one visit
    tie: Literal["earlier", "later"] = "earlier"  # of two PETs as near, the one before or the one after the T1 scan
    require: Literal["any", "both"] = "any"  # both: people with one PET only are left out
    per_person: Literal["all", "first", "closest"] = "all"  # sessions a person: all, the first, or the tightest triplet


@dataclass(frozen=True)
class CohortConfig:
    """Which people."""

    kind: Literal["phantom", "dlbs", "adni", "other"] = "phantom"
    source: Source = "bids"  # how the data lie: `resdm manifest`
    folder: str = "bids"  # where they lie, relative to the profile's work folder or absolute
    tables: str | None = None  # folder of the study's tables (adni); None: folder
    pet_level: Literal["dynamic", "averaged", "standardized", "uniform_8mm", "uniform_6mm"] = "standardized"  # LONI's
    phantom: PhantomConfig | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    exclude_flagged: bool = False  # leave out sessions that preprocessing flags; else they stay, flagged
    skip_unreadable: bool = False  # leave out sessions with a scan that cannot be used; else such a scan is an error
    tracers: dict[str, Literal["amyloid", "tau"]] = field(  # BIDS labels that are read, the first wins in a session
        default_factory=lambda: {"18FAV45": "amyloid", "18FFBB": "amyloid", "18FAV1451": "tau"}
    )
    amyloid_cutoff: dict[str, float] = field(default_factory=lambda: {"18FAV45": 1.11, "18FFBB": 1.08})
    tau_cutoff: float = 1.27  # meta-temporal SUVR; values in use run from 1.20 to 1.34


@dataclass(frozen=True)
class PreprocessConfig:
    """From native scans to the grid."""

    grid: GridConfig = field(default_factory=GridConfig)
    registration_mm: float = 2.0  # finest resolution of the registration pyramid
    n4: bool = True
    mask: bool = True  # zero outside the MNI brain
    # FWHM in mm of the Gaussian that every PET gets in its own voxels, an option. It adds in squares: 6 mm scans
    # smoothed by 8 are 10 mm scans. Studies smooth by 6 or 8; ADNI's own images have a common 8 (or 6) mm already.
    smooth_mm: float | None = None
    intensity: Literal["fixed", "minmax"] = "fixed"  # minmax is the paper-literal option: it erases SUVR
    suvr_range: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {"amyloid": (0.0, 3.0), "tau": (0.0, 3.0)}
    )
    mri_percentile: float = 99.5  # in-brain percentile of T1 that becomes 1


# ── the work ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class EvaluatorConfig:
    """An evaluator that is trained on real scans only; by default DSNet with the original's width and shift."""

    width: int = 16  # channels of the first convolution
    pool: int = 1  # average-pool the volumes by this first, an adaptation for small budgets
    epochs: int = 100
    batch_size: int = 8
    learning_rate: float = 1e-3  # of AdamW, with cosine decay
    weight_decay: float = 0.01
    shift_voxels: int = 3  # augmentation: a translation of up to this many voxels along each axis


@dataclass(frozen=True)
class BrainAgeConfig(EvaluatorConfig):
    """The brain-age network: the original's width, batch, decay and shift."""

    width: int = 8
    batch_size: int = 28
    weight_decay: float = 5e-5
    shift_voxels: int = 10


@dataclass(frozen=True)
class EvaluationConfig:
    """The downstream evaluators of Table 4 and Figures 4 and 5, by what they tell; defaults are for 128³."""

    folds: int = 5  # of the training people
    status: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    sex: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    age: BrainAgeConfig = field(default_factory=BrainAgeConfig)


@dataclass(frozen=True)
class CentiloidConfig:
    """The standard volumes of interest and, where one was made, an own calibration."""

    cortex: str  # mask image in MNI152, absolute or relative to the folder that holds configs/
    reference: str  # whole cerebellum, likewise
    equations: dict[str, tuple[float, float]] = field(default_factory=dict)  # BIDS label → slope, intercept of SUVR


@dataclass(frozen=True)
class FidelityConfig:
    """Regions of the SUVR fidelity beside the built-in ones. Apart from ``evaluation``: it changes no evaluator."""

    atlas: str | None = None  # aal, harvard_oxford (downloaded once by nilearn), or the path of a label image in MNI152
    labels: str | None = None  # TSV with columns index and name, for a path
    centiloid: CentiloidConfig | None = None


@dataclass(frozen=True)
class UncertaintyConfig:
    """How the spread of samples is judged."""

    samples: int = 8  # of every validation and test person
    method: str = "ResDM"


@dataclass(frozen=True)
class Config:
    """One profile."""

    profile: str
    seed: int = 0
    cohort: CohortConfig = field(default_factory=CohortConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    uncertainty: UncertaintyConfig = field(default_factory=UncertaintyConfig)
    methods: dict[str, MethodConfig] = field(
        default_factory=lambda: {"ResDM": method_from_dict({"kind": "residual_diffusion"}, "")}
    )
    conditions: tuple[str, ...] = (  # prompts that ResDM answers beside the factual one: Figures 4, 5, counterfactuals
        "no_age", "no_sex", "wrong_sex", "shuffled_age", "tracer_only", "shuffled", "age_55", "age_65", "age_75",
        "age_85",
    )  # fmt: skip
    privacy: Literal["aggregate", "individual"] | None = None  # may figures show single people? None: see individual
    root: Path = field(default=Path(), compare=False)  # folder that holds configs/ and work/; no part of the digest

    # Stages meet on disk only, at these places.
    @property
    def work(self) -> Path:
        """``work/<profile>/``: all that this profile makes, ignored by git."""
        return self.root / "work" / self.profile

    @property
    def figures(self) -> Path:
        """``figures/<profile>/``: the tables and figures."""
        return self.root / "figures" / self.profile

    @property
    def source_root(self) -> Path:
        """Where the source's data lie; relative paths start at the work folder."""
        return self.work / self.cohort.folder

    @property
    def manifest(self) -> Path:
        """``manifest.csv``: one row a session."""
        return self.work / "manifest.csv"

    @property
    def volumes(self) -> Path:
        """``volumes/``: preprocessed NIfTI, sidecars, ``cohort.npy``."""
        return self.work / "volumes"

    def model(self, method: str) -> Path:
        """``models/<method>/``: weights, configuration, provenance, history."""
        return self.work / "models" / method

    def predictions(self, method: str, condition: str = "factual") -> Path:
        """``predictions/<method>/<condition>/``: synthetic PET and ``scores.csv``."""
        return self.work / "predictions" / method / condition

    @property
    def evaluation_folder(self) -> Path:
        """``evaluation/``: scores of the downstream evaluators, and their weights."""
        return self.work / "evaluation"

    def method(self, name: str) -> MethodConfig:
        """The named method's settings, or a `ConfigError` that lists the names there are."""
        if name not in self.methods:
            raise ConfigError(
                f"profile {self.profile!r} has no method {name!r}{suggest(name, self.methods)}; "
                f"it has: {', '.join(self.methods)}"
            )
        return self.methods[name]

    def seeded(self, name: str) -> Config:
        """The profile under the seed of one of its methods: the profile's own where the method names none."""
        seed = self.method(name).seed
        return self if seed is None else dataclasses.replace(self, seed=seed)

    def precision(self, name: str) -> Precision:
        """The precision that a method is trained and sampled in: its own, or the profile's where it names none."""
        return self.method(name).precision or self.training.precision

    @property
    def notice(self) -> str:
        """What every title and table says where the cohort is not the paper's; empty on ADNI."""
        return {
            "adni": "",
            "phantom": "phantom data: not a reproduction of the paper's numbers",
        }.get(self.cohort.kind, f"{self.cohort.kind} data: not the paper's cohort")

    @property
    def individual(self) -> bool:
        """Whether figures may show single people: as ``privacy`` says; by default phantoms and open data only."""
        return self.cohort.kind in ("phantom", "dlbs") if self.privacy is None else self.privacy == "individual"

    def digest(self, *parts: str) -> str:
        """SHA-256 (16 hex digits) of the settings, or of the named ``parts`` of them (``"methods.ResDM"``)."""
        whole = to_dict(self)
        chosen = {part: _at(whole, part) for part in parts} if parts else whole
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def load_config(source: Config | str | Path) -> Config:
    """Read a profile: a name (``"phantom"``) or the path of a YAML file; a `Config` is returned as it is.

    A name is looked for as ``configs/<name>.yaml`` in the current folder and its parents, so a notebook
    works from the repository's root and from ``notebooks/`` alike.

    Raises
    ------
    ConfigError
        Unreadable file, unknown key, wrong type or a value out of range: file, key, found, expected.
    """
    if isinstance(source, Config):
        return source
    path = _find(source)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    tree = {"profile": path.stem} | tree
    config = build_settings(Config, tree, str(path), "")
    root = path.resolve().parent
    config = dataclasses.replace(config, root=root.parent if root.name == "configs" else root)
    _check(config, str(path))
    return config


def _find(source: str | Path) -> Path:
    text = str(source)
    if text.endswith((".yaml", ".yml")):
        candidates = [Path(text)] if Path(text).is_absolute() else [base / text for base in _parents()]
    else:
        candidates = [base / "configs" / f"{text}.yaml" for base in _parents()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(p.stem for base in _parents() for p in (base / "configs").glob("*.yaml"))
    raise ConfigError(f"no profile {text!r}: looked for {candidates[0]}; there are: {', '.join(known) or 'none'}")


def _parents() -> list[Path]:
    here = Path.cwd()
    return [here, *here.parents]


def _check(config: Config, file: str) -> None:
    """Ranges and combinations that types cannot say."""

    def demand(holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(f"{file}: {message}")

    grid, split, training = config.preprocess.grid, config.cohort.split, config.training
    demand(min(grid.shape) >= 16, f"preprocess.grid.shape is {grid.shape}; 16 voxels an axis are the least")
    demand(grid.voxel_mm > 0, f"preprocess.grid.voxel_mm is {grid.voxel_mm}; expected more than 0")
    smooth_mm = config.preprocess.smooth_mm
    demand(
        smooth_mm is None or 0 < smooth_mm <= 20,
        f"preprocess.smooth_mm is {smooth_mm}; expected a FWHM of up to 20 mm, such as 6 or 8, or null for none",
    )
    demand(
        0 < split.test < 1 and 0 < split.validation < 1 and split.test + split.validation < 1,
        f"cohort.split: test {split.test} and validation {split.validation} must leave people to train on",
    )
    demand(
        split.folds is None or (split.folds >= 2 and 0 <= split.fold < split.folds),
        f"cohort.split: fold {split.fold} of {split.folds}; expected 2 or more folds, and a fold from 0",
    )
    demand(
        split.folds is None or split.validation + 1 / split.folds < 1,
        f"cohort.split: a test fold of {split.folds} and validation {split.validation} must leave people to train on",
    )
    demand(
        config.cohort.match.window_days >= 0,
        f"cohort.match.window_days is {config.cohort.match.window_days}; expected 0 or more",
    )
    demand(
        config.cohort.kind != "phantom" or config.cohort.phantom is not None,
        "cohort.kind is phantom, but cohort.phantom is missing",
    )
    if config.cohort.phantom is not None:
        _check_phantom(config.cohort.phantom, demand)
    demand(
        training.budget != "equal_time" or training.seconds is not None,
        "training.budget is equal_time, but training.seconds is missing",
    )
    demand(
        min(training.epochs, training.batch_size, training.validate_every, training.checkpoint_every) >= 1,
        "training.epochs, batch_size, validate_every and checkpoint_every must each be at least 1",
    )
    demand(
        training.seconds is None or training.seconds > 0,
        f"training.seconds is {training.seconds}; expected more than 0",
    )
    demand(
        training.clip_norm is None or training.clip_norm > 0,
        f"training.clip_norm is {training.clip_norm}; expected more than 0, or null for none",
    )
    for name, precision in [("training", training.precision), *((n, m.precision) for n, m in config.methods.items())]:
        demand(
            training.clip_norm is None or precision != "16-mixed",
            f"training.clip_norm cannot be had with {name}'s precision 16-mixed; set bf16-mixed, or clip_norm: null",
        )
    demand(
        training.devices >= 1 and training.workers >= 0 and training.shift_voxels >= 0,
        "training: expected devices ≥ 1, workers ≥ 0 and shift_voxels ≥ 0",
    )
    demand(
        training.threads is None or training.threads >= 1,
        f"training.threads is {training.threads}; expected at least 1, or null for torch's own choice",
    )
    demand(
        set(config.preprocess.suvr_range) == set(TRACERS),
        f"preprocess.suvr_range needs exactly the keys {', '.join(TRACERS)}",
    )
    for tracer, (low, high) in config.preprocess.suvr_range.items():
        demand(low < high, f"preprocess.suvr_range.{tracer}: {low} is not below {high}")
    folds = config.evaluation.folds
    demand(folds >= 2, f"evaluation.folds is {folds}; expected at least 2")
    for name in ("status", "sex", "age"):
        at, evaluator = f"evaluation.{name}", getattr(config.evaluation, name)
        demand(
            min(evaluator.width, evaluator.pool, evaluator.epochs, evaluator.batch_size) >= 1,
            f"{at}: width, pool, epochs and batch_size must each be at least 1",
        )
        demand(
            min(grid.shape) // evaluator.pool >= 8,
            f"{at}.pool is {evaluator.pool}; 8 voxels an axis must be left of a grid of {grid.shape}",
        )
        demand(
            evaluator.learning_rate > 0 and evaluator.weight_decay >= 0 and evaluator.shift_voxels >= 0,
            f"{at}: expected learning_rate > 0, weight_decay ≥ 0 and shift_voxels ≥ 0",
        )
    demand(bool(config.methods), "methods is empty")
    samples = config.uncertainty.samples
    demand(samples >= 2, f"uncertainty.samples is {samples}; a standard deviation needs 2 or more")
    for condition in config.conditions:
        check_condition(condition, f"{file}: conditions")
    for name, method in config.methods.items():
        method.check(f"methods.{name}", demand)
        taken = ("template", "ceiling", "posterior", "real", "mri", "age_sex", "majority", "")  # other table sources
        demand("/" not in name and name not in taken, f"methods: {name!r} cannot be a method's name")
        base, mark, _ = name.partition("@")
        if mark and base in config.methods:  # a model folder's profile holds its own method alone
            same = dataclasses.replace(method, seed=None) == dataclasses.replace(config.methods[base], seed=None)
            demand(same, f"methods.{name} repeats methods.{base}: only its seed may differ")
            others = [other for other in config.methods if other != name and other.partition("@")[0] == base]
            equal = [other for other in others if config.seeded(other).seed == config.seeded(name).seed]
            demand(not equal, f"methods.{name} has the seed of methods.{', '.join(equal)}; give each its own")
        moved = training.shift_voxels > 0 or training.flip
        demand(
            not (moved and getattr(getattr(method, "network", None), "linear_path", False)),
            f"methods.{name}.network.linear_path is fitted on images as they are stored; set training.shift_voxels: 0 "
            "and flip: false",
        )


def _check_phantom(phantom: PhantomConfig, demand: Callable[[bool, str], None]) -> None:
    at = "cohort.phantom"
    demand(phantom.people >= 1, f"{at}.people is {phantom.people}; expected 1 or more")
    demand(1 <= phantom.anatomy_mm <= 4, f"{at}.anatomy_mm is {phantom.anatomy_mm}; expected 1 to 4")
    for key in ("t1_voxel_mm", "pet_voxel_mm"):
        demand(
            all(1 / 2 <= mm <= 8 for mm in getattr(phantom, key)),
            f"{at}.{key} is {getattr(phantom, key)}; expected 0.5 to 8 mm each",
        )
    low, high = phantom.pet_fwhm_mm
    demand(0 < low <= high, f"{at}.pet_fwhm_mm is {phantom.pet_fwhm_mm}; expected 0 < low ≤ high")
    for key in ("single_pet", "repeat_visits", "coupling"):
        value = getattr(phantom, key)
        demand(0 <= value <= 1, f"{at}.{key} is {value}; expected a fraction from 0 to 1")
    demand(phantom.noise >= 0, f"{at}.noise is {phantom.noise}; expected 0 or more")
    demand(phantom.pet_frames >= 1, f"{at}.pet_frames is {phantom.pet_frames}; expected 1 or more")


def _at(tree: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree
