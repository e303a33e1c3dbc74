"""Profiles: every setting of the suite, as frozen dataclasses that are read from strict YAML.

A profile is one YAML file in ``configs/``. pydantic validates it before any work starts: an unknown key, a wrong type
or a value out of range is a `ConfigError` that names the file and the key. Settings that the YAML leaves out are those
of the profile that it ``extends``, if it names one, else the defaults below, each with its reason.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import operator
import os
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from resdm.io import write_text
from resdm.settings import (
    ADDED,
    AGE_RANGE,
    METHODS,
    PROMPT_FIELDS,
    SEXES,
    TRACERS,
    ConfigError,
    MethodConfig,
    Precision,
    TrainingConfig,
    fields_of,
    further,
    imported_method,
    require,
    settings_class,
    suggest,
    to_dict,
)
from resdm_suite.paths import visible

CONDITIONS = {
    "factual": "the person's own age and sex",
    "no_age": "sex only",
    "no_sex": "age only",
    "tracer_only": "neither age nor sex",
    "wrong_sex": "own age, the other sex",
    "shuffled_age": "own sex, the age of another person of the list",
    "shuffled": "age and sex of another person of the list",
}
"""Contents of a prompt. Further conditions: ``age_<years>``, ``sex_F`` and ``sex_M`` use one value for everyone.

For each field of ``prior.fields`` there are also ``no_<field>`` (it is left out), ``shuffled_<field>`` (that of another
person of the list) and ``wrong_<field>`` (the value at the other end of the list's order, or another category).
"""

TARGET_WORDS = ("suvr", "centiloid", "status", "positive", "positivity", "braak", "uptake", "visual_read")
"""Words of columns that are read from a PET: no field of a prompt unless it is ``earlier_…``, from an earlier visit."""

MEASURED = ("similarity", "reference_mean", "reference_cov", "suvr_max", "clipped_percent")
"""What preprocessing measures of a PET for ``index.csv`` and quality control."""

NO_ATTRIBUTES = ("person", "session", "split", "t1w", *TRACERS, "space", "load", "stage", "severity", "progression",
                 "reason", "flags", "t1_correlation", *(f"present_{tracer}" for tracer in TRACERS),
                 *(f"{tracer}_{name}" for tracer in TRACERS for name in ("tracer", *MEASURED)))  # fmt: skip
"""Columns that are no attribute of a person, those of ``index.csv`` among them, and names of a phantom's truth."""

TORCH = find_spec("torch") is not None
"""Whether torch is installed. Without it no method can be built; stored results can be read."""

REDRAWN = os.environ.get("RESDM_FIGURES", "")
"""Folder of the results of notebooks that `resdm figures` runs, in place of ``figures/``; empty otherwise."""

READING = bool(REDRAWN) or not TORCH
"""Whether notebooks only read what is stored: nothing is fitted, synthesised or written onto a model card."""

PACKAGED = Path(__file__).parent / "configs"
"""Profiles of an installed package; a checkout has ``configs/`` at its top instead."""

Source = Literal["bids", "adni", "openneuro", "csv", "released"]
SOURCES: tuple[str, ...] = typing.get_args(Source)
"""Data layouts that `resdm manifest` reads."""

MIN_GROUP_SIZE = 5
"""Smallest group whose summary is drawn where single people are not."""


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=16)]
VoxelSize = Annotated[float, Field(ge=0.5, le=8)]


_NOT_NAMES = {"true", "false", "yes", "no", "on", "off", "none", "null", "na", "nan", "inf", "infinity"}


def check_name(name: Any, where: str) -> None:
    """Raise `ConfigError` unless a profile's or a method's name is safe in a path, a shell, YAML and a table."""
    valid = re.fullmatch(r"\+?[A-Za-z][A-Za-z0-9_.+@-]{0,63}", str(name))
    if not (isinstance(name, str) and valid and name.lstrip("+").lower() not in _NOT_NAMES):
        raise ConfigError(
            f"{where}: {name!r} cannot be a name; expected a letter, then letters, digits and _ . + - @ (no blank, "
            "at most 64), and no word for true, false, missing or a number"
        )


def check_condition(name: str, where: str = "", fields: typing.Iterable[str] = PROMPT_FIELDS) -> str:
    """The name of a condition of a prompt with these fields, see `CONDITIONS`; `ConfigError` for another name."""
    age, sex = re.fullmatch(r"age_(\d+(?:\.\d+)?)", name), re.fullmatch(f"sex_({'|'.join(SEXES)})", name)
    if age and not AGE_RANGE[0] <= float(age[1]) <= AGE_RANGE[1]:
        raise ConfigError(f"{where}: {name!r} is outside {AGE_RANGE[0]:.0f}–{AGE_RANGE[1]:.0f} years")
    of_fields = [f"{family}_{field}" for field in fields for family in ("no", "shuffled", "wrong")]
    if not (name in CONDITIONS or age or sex or name in of_fields):
        raise ConfigError(
            f"{where}: no condition {name!r}{suggest(name, [*CONDITIONS, *of_fields])}; expected one of "
            f"{', '.join(dict.fromkeys([*CONDITIONS, *of_fields]))}, age_<years>, "
            f"{', '.join(f'sex_{value}' for value in SEXES)}"
        )
    return name


def check_field(name: str, where: str) -> None:
    """Raise `ConfigError` for a field of a prompt that is no column's name, or that contains the model's target."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{where}: {name!r}; expected the name of a column in lower case, of letters, digits and _")
    derived = any(re.search(rf"(^|_){word}", name) for word in TARGET_WORDS) and not name.startswith("earlier_")
    if derived or name in NO_ATTRIBUTES:
        reason = "is derived from the PET that the model shall predict" if derived else "is no attribute of a person"
        raise ConfigError(
            f"{where}: {name!r} {reason}; leave it out. A value of an earlier visit is allowed in a column of its own, "
            f"as earlier_centiloid"
        )


# ── the cohort ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class GridConfig:
    """The common space: a box of cubic voxels over the MNI brain."""

    shape: tuple[Side, Side, Side] = (128, 128, 128)
    voxel_mm: Positive = 1.5


@dataclass(frozen=True)
class PlantedAttributes:
    """Further columns of the phantoms: plasma, marker (unrelated to anything) and apoe4 (related to amyloid)."""

    strength: Fraction = 0.7  # correlation of plasma with the pathology, amyloid load and tau stage in equal parts
    missing: Fraction = 0.1  # chance that a person lacks each of the three


@dataclass(frozen=True)
class PhantomConfig:
    """Settings of the phantom generator. Effects are large on purpose: small ones cannot be learned in minutes."""

    people: Count = 200
    anatomy_mm: Annotated[float, Field(ge=1, le=4)] = 2.0  # grid on which a person is built before the scan
    t1_voxel_mm: tuple[VoxelSize, VoxelSize, VoxelSize] = (1.0, 1.0, 1.2)
    pet_voxel_mm: tuple[VoxelSize, VoxelSize, VoxelSize] = (2.0, 2.0, 3.3)
    pet_fwhm_mm: tuple[Positive, Positive] = (6.0, 8.0)  # range over scanners
    scalp: bool = False
    single_pet: Fraction = 0.10  # of people with one PET only
    repeat_visits: Fraction = 0.12  # of people with a second session
    age_effect: float = 1.0  # multiplies the planted age slope; 0 makes a null phantom
    sex_effect: float = 1.0  # multiplies the planted sex effect; 0 makes a null phantom
    age_atrophy: float = 1.0  # multiplies atrophy by age; 0 in a null phantom too, else age would predict uptake by
    # separating atrophy of age from that of disease
    coupling: Fraction = 1.0  # probability that atrophy follows the person's disease; 0: it predicts nothing
    noise: NonNegative = 1.0  # multiplies the noise of T1 and PET; 0 for tests that need exact values
    pet_frames: Count = 1  # more than 1: PET files are 4D, frames to be averaged
    plasma: PlantedAttributes | None = field(default=None, metadata=ADDED)  # None: without them; scans are the same

    def __post_init__(self) -> None:
        low, high = self.pet_fwhm_mm
        require(low <= high, "pet_fwhm_mm", self.pet_fwhm_mm, "0 < low ≤ high")


@dataclass(frozen=True)
class SplitConfig:
    """Fractions of people. Stratified by diagnosis, tracers present and sex."""

    test: float = 0.20  # the paper's 254 of 1274 sets are 0.199; not used with folds
    validation: float = 0.10
    folds: Annotated[int, Field(ge=2)] | None = None  # k-fold: one of k parts of the people is the test set
    fold: int = 0  # its number, from 0

    @property
    def tested(self) -> float:
        """Fraction of people in the test set."""
        return self.test if self.folds is None else 1 / self.folds

    def __post_init__(self) -> None:
        test = self.tested
        enough = 0 < test < 1 and 0 < self.validation < 1 and test + self.validation < 1
        expected = f"a fraction that leaves people to train on, with validation {self.validation}"
        require(enough, "test", test, expected)
        require(self.folds is None or 0 <= self.fold < self.folds, "fold", self.fold, f"0 or more, below {self.folds}")


@dataclass(frozen=True)
class MatchConfig:
    """Which scans of a person make a session, where a source has the dates of its scans."""

    window_days: NonNegative = 365.0  # from the T1 scan to each PET; studies use ±180, ±365 and ±730, the paper none
    same_visit: bool = False  # only scans that the source files under one visit
    tie: Literal["earlier", "later"] = "earlier"  # of two PETs as near, the one before or the one after the T1 scan
    require: Literal["any", "both"] = "any"  # both: people with one PET only are left out
    per_person: Literal["all", "first", "closest"] = "all"  # sessions per person: all, the first, the tightest triplet


@dataclass(frozen=True)
class CohortConfig:
    """The participants, and the source of their data."""

    kind: Literal["phantom", "dlbs", "adni", "other"] = "phantom"
    source: Source = "bids"  # layout of the data, see `resdm manifest`
    folder: str = "bids"  # of the data, relative to the profile's work folder or absolute
    tables: str | None = None  # folder of the study's tables (adni); None: folder
    pet_level: Literal["dynamic", "averaged", "standardized", "uniform_8mm", "uniform_6mm"] = "standardized"  # LONI's
    phantom: PhantomConfig | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    exclude_flagged: bool = False  # leave out sessions that preprocessing flags; by default they stay, flagged
    skip_unreadable: bool = False  # leave out sessions with an unusable scan; by default it is an error
    tracers: dict[str, Literal["amyloid", "tau"]] = field(  # BIDS labels to read; of several the first
        default_factory=lambda: {"18FAV45": "amyloid", "18FFBB": "amyloid", "18FAV1451": "tau"}
    )
    amyloid_cutoff: dict[str, float] = field(default_factory=lambda: {"18FAV45": 1.11, "18FFBB": 1.08})
    tau_cutoff: float = 1.27  # meta-temporal SUVR; values in use run from 1.20 to 1.34

    def cutoff(self, target: str, label: str) -> float:
        """The cut-off (SUVR) of a target's tracer, by its BIDS label; NaN where none is known."""
        return self.tau_cutoff if target == "tau" else self.amyloid_cutoff.get(label, math.nan)


@dataclass(frozen=True)
class PreprocessConfig:
    """From native scans to the grid."""

    grid: GridConfig = field(default_factory=GridConfig)
    registration_mm: Positive = 2.0  # finest resolution of the registration pyramid
    n4: bool = True
    mask: bool = True  # zero outside the MNI brain
    # deepbet (extra deepbet): the T1 is registered without its skull and scalp; mni: inside the MNI brain alone
    brain_mask: Literal["mni", "deepbet"] = field(default="mni", metadata=ADDED)
    # FWHM of a Gaussian applied to every native PET. Widths add in squares: 6 mm scans smoothed by 8 mm have
    # 10 mm. Studies smooth by 6 or 8 mm; ADNI's processed images already have a common 8 (or 6) mm.
    smooth_mm: Annotated[float, Field(gt=0, le=20)] | None = None
    intensity: Literal["fixed", "minmax"] = "fixed"  # minmax is the paper-literal option: it erases SUVR
    suvr_range: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {"amyloid": (0.0, 3.0), "tau": (0.0, 3.0)}
    )
    mri_percentile: Annotated[float, Field(gt=0, le=100)] = 99.5  # in-brain percentile of T1 that becomes 1

    def __post_init__(self) -> None:
        ranges = self.suvr_range
        require(set(ranges) == set(TRACERS), "suvr_range", list(ranges), f"exactly the keys {', '.join(TRACERS)}")
        for tracer, (low, high) in ranges.items():
            require(low < high, f"suvr_range.{tracer}", (low, high), "low < high")

    @property
    def in_suvr(self) -> bool:
        """Whether PETs have a common scale, so that SUVR can be measured; minmax scales each to its own range."""
        return self.intensity == "fixed"

    @property
    def pet_range(self) -> dict[str, tuple[float, float]]:
        """What intensities 0 and 1 of a PET stand for, by tracer, in `pet_unit`."""
        return self.suvr_range if self.in_suvr else dict.fromkeys(TRACERS, (0.0, 1.0))

    @property
    def pet_unit(self) -> str:
        """The unit in which PETs are shown: each scan's own scale leaves no SUVR."""
        return "SUVR" if self.in_suvr else "PET in [0, 1]"


# ── processing and evaluation ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class EvaluatorConfig:
    """An evaluator that is trained on real scans only; by default DSNet with the original's width and shift."""

    width: Count = 16  # channels of the first convolution
    pool: Count = 1  # average-pool the volumes by this first, an adaptation for small budgets
    epochs: Count = 100
    batch_size: Count = 8
    learning_rate: Positive = 1e-3  # of AdamW, with cosine decay
    weight_decay: NonNegative = 0.01
    shift_voxels: Annotated[int, Field(ge=0)] = 3  # augmentation: a translation of up to this many voxels per axis


@dataclass(frozen=True)
class BrainAgeConfig(EvaluatorConfig):
    """The brain-age network: the original's width, batch, decay and shift."""

    width: Count = 8
    batch_size: Count = 28
    weight_decay: NonNegative = 5e-5
    shift_voxels: Annotated[int, Field(ge=0)] = 10


@dataclass(frozen=True)
class EvaluationConfig:
    """The downstream evaluators of Table 4 and Figures 4 and 5, by their target; defaults are for 128³."""

    folds: Annotated[int, Field(ge=2)] = 5  # of the training people
    status: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    sex: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    age: BrainAgeConfig = field(default_factory=BrainAgeConfig)


@dataclass(frozen=True)
class CentiloidConfig:
    """The standard volumes of interest and, optionally, a user's calibration."""

    cortex: str  # mask image in MNI152, absolute or relative to the folder that holds configs/
    reference: str  # whole cerebellum, likewise
    equations: dict[str, tuple[float, float]] = field(default_factory=dict)  # BIDS label → slope, intercept of SUVR


@dataclass(frozen=True)
class FidelityConfig:
    """Further regions of the SUVR fidelity. Not part of ``evaluation``, since it changes no evaluator."""

    atlas: str | None = None  # aal, harvard_oxford (downloaded once by nilearn), or the path of a label image in MNI152
    labels: str | None = None  # TSV with columns index and name, for a path
    centiloid: CentiloidConfig | None = None


@dataclass(frozen=True)
class UncertaintyConfig:
    """Repeated samples of a method."""

    samples: Annotated[int, Field(ge=2)] = 8  # of every validation and test person
    method: str = "ResDM"


@functools.cache
def _validator(cls: type) -> TypeAdapter:
    """Validates a mapping of names to settings. JSON, since strict pydantic takes lists for tuples in JSON only."""
    return TypeAdapter(dict[str, cls], config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


def _validated(cls: type, name: str, tree: Any) -> Any:
    return _validator(cls).validate_json(json.dumps({name: tree}, default=str))[name]


def _settings_of(name: str, settings: dict[str, Any]) -> type[MethodConfig]:
    """The class of a method's settings, by its ``kind``; without torch one of the settings as they are stated.

    There, the class's defaults and limits are unknown, so the profile must state all, as that of an archive does.
    """
    if TORCH:
        return settings_class(settings["kind"], f"{name}.kind")
    if unstated := [f.name for f in dataclasses.fields(MethodConfig) if f.name not in settings]:
        raise ConfigError(
            f"{name}: {', '.join(unstated)} not stated, and their defaults are unknown without torch; install "
            "torch, or read the profile of an archive (resdm archive --for-reading)"
        )
    return _stated(settings, MethodConfig)


def _stated(settings: dict[str, Any], *bases: type) -> type:
    """A dataclass with the keys of ``settings`` as fields, in addition to those of ``bases``."""
    known = {f.name for base in bases for f in dataclasses.fields(base)}
    kinds = {
        key: _stated(value) if isinstance(value, dict) else tuple if isinstance(value, list) else Any
        for key, value in settings.items()
        if key not in known
    }
    fields = [(key, kind, field(default=None)) for key, kind in kinds.items()]
    return dataclasses.make_dataclass("Stated", fields, bases=bases, frozen=True)


def _methods(tree: Any) -> dict[str, MethodConfig]:
    """Settings of each method, by the class that its ``kind`` names."""
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(" must be a mapping of names to methods, or, with extends, a list of names")
    methods: dict[str, MethodConfig] = {}
    for name, settings in tree.items():
        check_name(name, "")
        if str(name).lower() in map(str.lower, methods):
            raise ConfigError(f": {name!r} differs from another method by capitals only; some file systems mix them up")
        if not isinstance(settings, dict) or "kind" not in settings:
            raise ConfigError(f"{name} needs a kind: one of {', '.join(METHODS)}")
        methods[name] = _validated(_settings_of(name, settings), name, settings)
    return methods


@dataclass(frozen=True)
class Config:
    """One profile."""

    profile: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    cohort: CohortConfig = field(default_factory=CohortConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    uncertainty: UncertaintyConfig = field(default_factory=UncertaintyConfig)
    methods: Annotated[dict[str, MethodConfig], PlainValidator(_methods)] = field(
        default_factory=lambda: {"ResDM": settings_class("residual_diffusion")()}
    )
    conditions: tuple[Annotated[str, AfterValidator(check_condition)], ...] = (  # of ResDM, without the factual one
        "no_age", "no_sex", "wrong_sex", "shuffled_age", "tracer_only", "shuffled", "age_55", "age_65", "age_75",
        "age_85",
    )  # fmt: skip
    privacy: Literal["aggregate", "individual"] | None = None  # individual: figures may show single people
    root: Path = field(default=Path(), compare=False)  # of configs/ and work/; no part of the digest

    # Stages exchange files at these places only.
    @property
    def work(self) -> Path:
        """``work/<profile>/``: all files of this profile, ignored by git."""
        return self.root / "work" / self.profile

    @property
    def figures(self) -> Path:
        """``figures/<profile>/``: the tables and figures."""
        return Path(REDRAWN) if REDRAWN else self.root / "figures" / self.profile

    @property
    def source_root(self) -> Path:
        """Folder of the source's data; relative paths start at the work folder."""
        return self.work / self.cohort.folder

    @property
    def manifest(self) -> Path:
        """``manifest.csv``: one row per session."""
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
        """The named method's settings, or a `ConfigError` that lists the known names."""
        if name not in self.methods:
            fault = f"profile {self.profile!r} has no method {name!r}{suggest(name, self.methods)}"
            raise ConfigError(f"{fault}; it has: {', '.join(self.methods)}")
        return self.methods[name]

    @property
    def purpose(self) -> Literal["paper", "released", "attributes"]:
        """What the workflow makes: the paper's tables, faults of the released code, or worth of attributes."""
        if any(method.kind == "released" for method in self.methods.values()):
            return "released"
        return "attributes" if self.cohort.phantom and self.cohort.phantom.plasma else "paper"

    @property
    def attributes(self) -> tuple[str, ...]:
        """Fields besides age and sex that any method's prompt or design names: columns of the manifest, in order."""
        return tuple(dict.fromkeys(name for method in self.methods.values() for name in further(fields_of(method))))

    def attribute_conditions(self, name: str) -> tuple[str, ...]:
        """Conditions under which notebook 22 needs a method: its further fields shuffled, and wrong if there is one.

        With several, age and sex are shuffled too.
        """
        fields = fields_of(self.method(name))
        more = further(fields)
        if len(more) == 1:
            return f"shuffled_{more[0]}", f"wrong_{more[0]}"
        return tuple(f"shuffled_{field}" for field in fields) if more else ()

    @property
    def ceiling_conditions(self) -> dict[str, tuple[str, ...]]:
        """Condition of the ceiling → further fields that it uses: those of each method; of phantoms only."""
        methods = self.methods.values() if self.cohort.phantom else ()
        fields = (further(fields_of(method)) for method in methods)
        return {"with_" + "_".join(more): more for more in fields if more}

    def seeded(self, name: str) -> Config:
        """The profile with the seed of one of its methods, if the method sets one."""
        seed = self.method(name).seed
        return self if seed is None else dataclasses.replace(self, seed=seed)

    def precision(self, name: str) -> Precision:
        """The precision of a method's training and sampling: the method's, else the profile's."""
        return self.method(name).precision or self.training.precision

    @property
    def notice(self) -> str:
        """Note for every title and table where the cohort is not the paper's; empty on ADNI."""
        notices = {"adni": "", "phantom": "phantom data: not a reproduction of the paper's numbers"}
        return notices.get(self.cohort.kind, f"{self.cohort.kind} data: not the paper's cohort")

    @property
    def individual(self) -> bool:
        """Whether figures may show single people, see ``privacy``; by default those of phantoms and open data."""
        return self.cohort.kind in ("phantom", "dlbs") if self.privacy is None else self.privacy == "individual"

    @property
    def shareable(self) -> Config:
        """The profile without absolute paths of data, atlases and weights, which are of this machine."""

        def private(*paths: str | None) -> bool:
            return any(Path(path or "").is_absolute() for path in paths)

        cohort, fidelity = self.cohort, self.fidelity
        if private(cohort.folder, cohort.tables):
            cohort = dataclasses.replace(cohort, folder="data", tables=None)
        if private(fidelity.atlas, fidelity.labels):
            fidelity = dataclasses.replace(fidelity, atlas=None, labels=None)
        if (volumes := fidelity.centiloid) and private(volumes.cortex, volumes.reference):
            fidelity = dataclasses.replace(fidelity, centiloid=None)
        methods = dict(self.methods)
        for name, method in methods.items():
            weights = getattr(getattr(method, "prior", None), "weights", None)
            if private(weights):
                prior = dataclasses.replace(method.prior, weights=Path(weights).name)
                methods[name] = dataclasses.replace(method, prior=prior)
        return dataclasses.replace(self, cohort=cohort, fidelity=fidelity, methods=methods)

    def digest(self, *parts: str) -> str:
        """SHA-256 (16 hex digits) of the settings, or of the named ``parts`` of them (``"methods.ResDM"``)."""
        whole = to_dict(self)
        chosen = {part: functools.reduce(operator.getitem, part.split(".", 1), whole) for part in parts} or whole
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


class _Loader(yaml.SafeLoader):
    """YAML 1.1, in which 1e-4 (without a dot) is a number, a key is text (``yes``, ``0012``) and stands once.

    Numbers are decimal or begin with 0x, see `_decimal`.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE]
        for i, key in enumerate(keys):
            key.tag = "tag:yaml.org,2002:str"
            if key.value in [other.value for other in keys[:i]]:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """A number; 012 and 1:30, which YAML 1.1 takes for 10 and 90, are refused."""
    if ":" in node.value or re.match(r"[-+]?0[0-9_]", node.value):
        problem = f"{node.value} is a number to base 8 or 60; write a decimal number without leading zeros, or quote it"
        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
    return getattr(loader, f"construct_yaml_{node.tag.rpartition(':')[2]}")(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _decimal)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def load_config(source: Config | str | Path) -> Config:
    """Read a profile: a name (``"phantom"``) or the path of a YAML file; a `Config` is returned as it is.

    ``configs/<name>.yaml`` is looked for in the current folder and its parents, so that a notebook works from the
    repository's root and from ``notebooks/``, and last in the installed package. A profile of the package works in the
    current folder.

    Raises
    ------
    ConfigError
        Unreadable file, unknown key, wrong type, or a value out of range: names file, key, value, expected values.
    """
    if isinstance(source, Config):
        return source
    config = read_config(path := _find(source))
    if config.profile != path.stem and not (path.parent / "model.safetensors").is_file():
        raise ConfigError(
            f"{path}: profile is {config.profile!r}, but the file's name is {path.stem!r}, and results go to the "
            f"folder of the profile; write `profile: {path.stem}`, or leave the line out"
        )
    return config


def read_config(path: Path, *, trust_code: bool = True) -> Config:
    """Read the profile of a file, whatever its name: also ``config.yaml`` of a model folder.

    Without ``trust_code``, a ``kind: module:Class`` whose module is not yet imported is a `ConfigError`: importing it
    would run code.
    """
    tree = {"profile": path.stem} | _read_tree(path)
    try:
        check_name(tree["profile"], "profile")
        methods = tree.get("methods")
        for name, settings in methods.items() if isinstance(methods, dict) and not trust_code else ():
            if isinstance(settings, dict) and "kind" in settings:
                imported_method(settings["kind"], f"methods.{name}.kind", trust_code)
        if "root" in tree:
            raise ConfigError("unknown key 'root'")
        config = _validated(Config, "", tree)
        for holds, message in _combinations(config):
            if not holds:
                raise ConfigError(message)
    except ValidationError as errors:
        lines = [_message(error, tree) for error in errors.errors()]
        raise ConfigError(f"{path}: " + "\n".join(lines)) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    folder = path.resolve().parent
    if folder == PACKAGED.resolve():
        return dataclasses.replace(config, root=Path.cwd())
    return dataclasses.replace(config, root=folder.parent if folder.name == "configs" else folder)


def _read_tree(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a file, over those of the profile that it ``extends``.

    A key of a section (``cohort.tracers``, ``methods.ResDM``) replaces that of the other profile as a whole. A list of
    names as ``methods`` chooses among the other profile's.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        json.dumps(tree, default=str)  # refuses an alias inside its own anchor
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    if "extends" not in tree:
        return tree
    name = tree.pop("extends")
    check_name(name, f"{path}: extends")
    beside, path = path.with_name(f"{name}.yaml").resolve(), path.resolve()
    if beside in (path, *extending):
        raise ConfigError(f"{path}: extends: {name!r} extends this profile itself")
    whole = _read_tree(beside if beside.is_file() else _find(name), (path, *extending))
    whole.pop("profile", None)
    if isinstance(tree.get("methods"), list):
        chosen, known = [*map(str, tree["methods"])], whole.pop("methods", {})
        for method in chosen:
            if method not in known:
                raise ConfigError(f"{path}: methods: {name!r} states no {method!r}{suggest(method, known)}")
        tree["methods"] = {method: known[method] for method in chosen}
    both = {
        key: whole[key] | value
        for key, value in tree.items()
        if isinstance(whole.get(key), dict) and isinstance(value, dict)
    }
    return whole | tree | both


_NEW = """\
# The settings in which this study differs from the profile {base}; all others are taken from it.
extends: {base}
# methods: [ResDM, regression, linear]  # to train some of its methods alone
cohort:
  kind: {kind}
  source: {source}
  folder: {folder}  # absolute, or relative to work/{name}
"""
_OWN_DATA = """\
  split: { test: 0.2, validation: 0.1 }
  match: { window_days: 365 }  # from the T1 scan to each PET
  tracers: { 18FAV45: amyloid, 18FFBB: amyloid, 18FAV1451: tau }  # BIDS labels of the scans
  amyloid_cutoff: { 18FAV45: 1.11, 18FFBB: 1.08 }  # cortical SUVR
  tau_cutoff: 1.27  # meta-temporal SUVR
"""


def write_profile(name: str, base: str, source: Source, data: Path | None = None) -> Path:
    """Write a short profile that extends another one, for the data of a study.

    Parameters
    ----------
    name
        Of the new profile.
    base
        Name of the profile that it extends. The new one is written beside it, or in ``configs/`` of the current folder
        if it is a profile of the installed package.
    source
        Layout of the data.
    data
        The dataset, or the table of ``csv``. By default a place in the new profile's work folder.

    Returns
    -------
    Path
        The new file.

    Raises
    ------
    ConfigError
        An unsafe name, the name of another profile, or no profile ``base``.
    """
    name = name.removesuffix(".yaml")
    check_name(name, "name")
    extended, packaged = load_config(base), PACKAGED.resolve()
    folder = _find(base).resolve().parent
    folder = Path.cwd() / "configs" if folder == packaged else folder
    for path in (*visible(folder, "*.yaml"), *visible(packaged, "*.yaml")):
        if path.stem.lower() == name.lower():
            raise ConfigError(f"there is a profile {path.stem!r} already ({path}); choose another name")
    kind = {"adni": "adni", "openneuro": "dlbs"}.get(source, "other")
    place = str(data.absolute()) if data else "table.csv" if source == "csv" else source
    text = _NEW.format(
        base=extended.profile, kind=kind, source=source, name=name, folder=json.dumps(place, ensure_ascii=False)
    )
    text += "  phantom: null  # no simulated people\n" * (extended.cohort.kind == "phantom")
    if kind == "adni" != extended.cohort.kind:
        text += "  match: { window_days: 180 }  # from the T1 scan to each PET, as in the profile adni\n"
    folder.mkdir(exist_ok=True)
    return write_text(folder / f"{name}.yaml", text + _OWN_DATA * (kind == "other"))


def shipped(folder: str) -> Path:
    """``configs`` or ``notebooks``: of the installed package, or at the checkout's top."""
    return next(top / folder for top in (PACKAGED.parent, PACKAGED.parents[1]) if (top / folder).is_dir())


def _find(source: str | Path) -> Path:
    text, here = str(source), Path.cwd()
    name = text if text.endswith(".yaml") else f"configs/{text}.yaml"
    folders = [here, *here.parents, PACKAGED.parent]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    known = sorted({p.stem for folder in folders for p in visible(folder / "configs", "*.yaml") if p.is_file()})
    raise ConfigError(f"no profile {text!r}: looked for {here / name}; there are: {', '.join(known) or 'none'}")


RENAMED = {"lessons": "pretraining_steps", "mended": "repaired"}
"""Keys of earlier profiles and models, and their names today."""


def _message(error: Any, tree: dict[str, Any]) -> str:
    """One line for an error of pydantic: key, value, expected values."""
    keys = error["loc"][1:]  # without the empty name of the profile
    at = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
    if error["type"] == "unexpected_keyword_argument":
        known = [f.name for f in dataclasses.fields(_section(keys[:-1], tree)) if f.name != "root"]
        section = at.rpartition(".")[0] or "the file"
        hint = f" (now {RENAMED[keys[-1]]!r})" if keys[-1] in RENAMED else suggest(keys[-1], known)
        return f"unknown key {at!r}{hint}; {section} takes: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{at} is missing"
    if error["type"] == "value_error":  # of a class of settings, or of a condition
        text = str(error["ctx"]["error"])
        return f"{at}{text if text.startswith((':', ' ')) else f'.{text}'}" if at else text
    expected = error["msg"].removeprefix("Input should be ").replace("greater than or equal to", "at least")
    types = {"dataclass_type": "a mapping", "dict_type": "a mapping", "tuple_type": "a list"}
    expected = types.get(error["type"], expected)
    return f"{at} is {textwrap.shorten(repr(error['input']), 200, placeholder=' …')}; expected {expected}"


def _section(keys: tuple, tree: dict[str, Any]) -> type:
    """The class of the settings at a place of a profile."""
    cls: Any = Config
    for depth, key in enumerate(keys):
        if keys[:depth] == ("methods",):
            cls = _settings_of(key, tree["methods"][key])
        else:
            hint = typing.get_type_hints(cls).get(key)
            cls = next((c for c in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(c)), MethodConfig)
    return cls


_TAKEN = ("template", "ceiling", "posterior", "real", "mri", "age_sex", "majority", "conditions")  # sources of tables


def _combinations(config: Config) -> Iterator[tuple[bool, str]]:
    """Whether settings agree with each other, and the message where they do not."""
    training, shape = config.training, config.preprocess.grid.shape
    phantom = config.cohort.kind != "phantom" or config.cohort.phantom is not None
    yield phantom, "cohort.kind is phantom, but cohort.phantom is missing"
    tau = [label for label, target in config.cohort.tracers.items() if target == "tau"]
    scales = f"{len(tau)} tau tracers ({', '.join(tau)}), whose SUVRs are on different scales"
    yield len(tau) <= 1, f"cohort.tracers names {scales}; keep one of them"
    for name in ("status", "sex", "age"):
        pool = getattr(config.evaluation, name).pool
        expected = f"8 voxels per axis or more after pooling a grid of {shape}"
        yield min(shape) // pool >= 8, f"evaluation.{name}.pool is {pool}; expected {expected}"
    yield len({*config.conditions}) == len(config.conditions), "conditions: one of them stands twice"
    precisions = {"training": training.precision} | {name: method.precision for name, method in config.methods.items()}
    for name, precision in precisions.items():
        remedy = "set bf16-mixed, or clip_norm: null"
        fault = f"training.clip_norm is not supported with {name}'s precision 16-mixed; {remedy}"
        yield training.clip_norm is None or precision != "16-mixed", fault
    for name, method in config.methods.items():
        yield name.lower() not in _TAKEN, f"methods: {name!r} cannot be a method's name: the suite uses it"
        network = getattr(method, "network", None)
        yield (
            not (getattr(network, "linear_path", False) and (training.shift_voxels > 0 or training.flip)),
            f"methods.{name}.network.linear_path is fitted on images as they are stored; set training.shift_voxels: 0 "
            "and flip: false",
        )
        if hasattr(network, "multipliers"):
            sizes = [network.width, *network.multipliers]
            fault = f"methods.{name}.network has width {sizes[0]} and multipliers {sizes[1:]}"
            expected = "numbers from 1, and at least one multiplier"
            yield len(sizes) > 1 and min(sizes) >= 1, f"{fault}; expected {expected}"
        if tower := getattr(getattr(method, "prior", None), "tower", None):
            fault = f"methods.{name}.prior.tower.heads is {tower.heads}; expected a divisor of {tower.width}, its width"
            yield tower.heads > 0 and tower.width % tower.heads == 0, fault
        for key in (key for key in ("cross_heads", "attention_heads") if hasattr(network, key)):
            channels, heads = network.width * network.multipliers[-1], getattr(network, key)
            fault = f"methods.{name}.network.{key} is {heads}; expected a divisor of {channels}, the coarsest channels"
            yield heads > 0 and channels % heads == 0, fault
        for field_name in further(fields_of(method)):
            check_field(field_name, f"methods.{name}: fields")
        base, mark, _ = name.partition("@")
        if not mark or base not in config.methods:  # the profile of a model folder has one method
            continue
        same = to_dict(method) | {"seed": None} == to_dict(config.methods[base]) | {"seed": None}
        yield same, f"methods.{name} repeats methods.{base}: only its seed may differ"
        others = [other for other in config.methods if other != name and other.partition("@")[0] == base]
        equal = [other for other in others if config.seeded(other).seed == config.seeded(name).seed]
        yield not equal, f"methods.{name} has the seed of methods.{', '.join(equal)}; give each another seed"
