"""Configuration: every switch of the suite, as frozen dataclasses read from strict YAML.

A profile is one YAML file in ``configs/``. An unknown key, a value of the wrong type or out of range is a
`ConfigError` that names the file and the key, raised before any work starts. What is not in the YAML has
the default written here, with its reason.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

TRACERS = ("amyloid", "tau")
"""The two PET targets, in channel order, everywhere."""

SEXES = ("F", "M")
"""The sex codes of manifests, prompts and tables."""

AGE_RANGE = (18.0, 110.0)
"""Plausible ages at scan, in years; anything outside is taken for a mistake of entry."""

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

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
"""Lightning Fabric's names. The mixed ones compute in half precision; weights, optimisers and EMA stay in 32 bits."""


class ConfigError(ValueError):
    """A configuration that cannot be used: names the file, the key, what was found and what was expected."""


def check_person(age: float | None, sex: str | None, where: str) -> None:
    """Raise `ValueError` where an age or a sex is none that a prompt can say; ``None`` means unsaid.

    ``where`` starts the message: a file and its row, or a command-line option.
    """
    if isinstance(age, str):
        raise ValueError(f"{where}: age {age!r} is text; expected a number of years, or none")
    if age is not None and not AGE_RANGE[0] <= age <= AGE_RANGE[1]:
        raise ValueError(f"{where}: age {age} is outside {AGE_RANGE[0]:.0f}–{AGE_RANGE[1]:.0f} years")
    if sex is not None and sex not in SEXES:
        raise ValueError(f"{where}: unknown sex {sex!r}; expected one of {', '.join(SEXES)}, or none")


def check_condition(name: str, where: str) -> None:
    """Raise `ConfigError` where a name is no condition of `CONDITIONS` or of its two families."""
    age, sex = re.fullmatch(r"age_(\d+(?:\.\d+)?)", name), re.fullmatch(f"sex_({'|'.join(SEXES)})", name)
    if age and not AGE_RANGE[0] <= float(age[1]) <= AGE_RANGE[1]:
        raise ConfigError(f"{where}: {name!r} is outside {AGE_RANGE[0]:.0f}–{AGE_RANGE[1]:.0f} years")
    if not (name in CONDITIONS or age or sex):
        raise ConfigError(
            f"{where}: no condition {name!r}{_suggest(name, CONDITIONS)}; there are: {', '.join(CONDITIONS)}, "
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


# ── the paper's network ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class NetworkConfig:
    """f_θ of Eq. 3: the released widths by default."""

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: int = 1  # residual blocks a level on the way down; one more on the way up
    attention_levels: tuple[int, ...] = (3,)  # self-attention at these levels, 0 being the finest
    attention_heads: int = 1
    cross_heads: int = 8
    time_dim: int = 32  # sinusoidal; mapped to 4 × this
    norm_groups: int = 32  # of every GroupNorm; fewer where they do not divide the channels
    dropout: float = 0.0
    stem: Literal["haar", "none"] = "none"  # haar: orthonormal, 8 channels at half resolution
    global_path: bool = True  # additions to the paper, see resdm.paths: the coarse MRI scales
    linear_path: bool = False  # and shifts every block; the network corrects a linear estimate, for small grids
    fused_upsampling: bool = True  # nearest and convolution in one call: other last bits, a third of the work
    recompute_pointwise: bool = False  # norms and SiLU are computed again going backward: the same values, less memory
    checkpoint_activations: bool = False  # whole blocks are: the least memory, a third more work

    @property
    def recompute(self) -> str | None:
        """What blocks compute again in the backward pass, see `resdm.recompute`."""
        return "all" if self.checkpoint_activations else "pointwise" if self.recompute_pointwise else None


@dataclass(frozen=True)
class TowerConfig:
    """A text tower smaller than CLIP ViT-B/32, for profiles without download."""

    width: int = 128
    heads: int = 4
    layers: int = 3
    embed_dim: int = 128
    lessons: int = 300  # optimiser steps on prompts alone (recover age, sex, tracer), no image; 0: random weights


@dataclass(frozen=True)
class PriorConfig:
    """The prior-information-guided module (§3.2)."""

    weights: str = "openai"  # "openai", a path of a weights file, or "none" (see tower)
    tower: TowerConfig | None = None  # None: ViT-B/32
    context: Literal["tokens", "pooled"] = "tokens"  # pooled: Eq. 5 to the letter, one key: see docs of prior.py
    fields: tuple[Literal["age", "sex"], ...] = ("age", "sex")  # what the prompt says beside the tracer
    dropout: float = 0.0  # chance of leaving age, and of leaving sex, out of a training prompt
    dim: int = 256  # of the projected text


@dataclass(frozen=True)
class MethodConfig:
    """What every method has. ``kind`` names the class in `resdm.methods`."""

    multiple: ClassVar[int] = 2  # voxels an axis that the network takes, see resdm.anatomy.working_box
    by_halving: ClassVar[bool] = False  # as deep as the volume's shortest axis can be halved

    kind: str
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    decay: Literal["none", "cosine", "linear_half"] = "none"  # linear_half: constant, then to 0 over the last half
    ema: float = 0.0  # 0: none
    batch_size: int | None = None  # None: training.batch_size
    precision: Precision | None = None  # None: training.precision
    seed: int | None = None  # of training and sampling; None: the profile's. X@seed1 is X with another one


@dataclass(frozen=True)
class ResidualDiffusionConfig(MethodConfig):
    """ResDM. Defaults are those of the released code (`facts`: T, η, κ, λ, optimiser)."""

    kind: str = "residual_diffusion"
    steps: int = 15  # T
    eta: Literal["linear", "geometric"] = "linear"
    eta_range: tuple[float, float] = (0.04, 0.999)  # η_1, η_T
    eta_power: float = 0.3  # p of the geometric sequence (ResShift)
    kappa: float = 0.1
    lambda_high: float = 0.1
    start_share: float = 0.0  # chance of training at t = T − 1, beyond uniform draws; 0 as the paper
    sampling_steps: int | None = None  # None: T
    ema: float = 0.9999
    ema_warmup: int = 2000  # plain copies before
    network: NetworkConfig = field(default_factory=NetworkConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)


@dataclass(frozen=True)
class RegressionConfig(MethodConfig):
    """The control that the paper does not show: the same network, one pass, plain L2, no diffusion."""

    kind: str = "regression"
    lambda_high: float = 0.1
    ema: float = 0.9999
    ema_warmup: int = 2000
    network: NetworkConfig = field(default_factory=NetworkConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)


@dataclass(frozen=True)
class ReleasedConfig(MethodConfig):
    """The released code, fault for fault, its T, η, κ and λ included: see `resdm.methods.released`."""

    multiple: ClassVar[int] = 8

    kind: str = "released"
    ema: float = 0.9999
    ema_warmup: int = 2000  # plain copies before
    sampling_steps: int | None = None  # None: T = 15
    width: int = 32
    mri_shift: int = 2  # voxels, in training: of the MRI alone, after training.shift_voxels has moved all volumes
    mended: tuple[Literal["input", "attention", "middle"], ...] = ()  # faults to leave out, to see what each costs
    prior: PriorConfig = field(default_factory=lambda: PriorConfig(context="pooled"))  # dim: 8 × width


# ── the five competitors ──────────────────────────────────────────────────────────────────────────
# Widths are those at which a 128³ grid costs about what ResDM does; each docstring in resdm.methods names its source.


@dataclass(frozen=True)
class AdversarialConfig(MethodConfig):
    """What the four with a discriminator have in common; no method by itself."""

    kind: str = ""
    learning_rate: float = 2e-4
    discriminator_learning_rate: float | None = None  # None: learning_rate, as in the originals
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    decay: Literal["none", "cosine", "linear_half"] = "linear_half"  # 100 constant and 100 decaying epochs
    l1_weight: float = 100.0
    discriminator_width: int = 32


@dataclass(frozen=True)
class Pix2PixConfig(AdversarialConfig):
    """Pix2Pix (Isola et al. 2017), one model a tracer."""

    by_halving: ClassVar[bool] = True

    kind: str = "pix2pix"
    width: int = 32
    dropout: float = 0.5


@dataclass(frozen=True)
class SCGANConfig(AdversarialConfig):
    """SC-GAN (Lan et al. 2021), one model a tracer. Its L2 term is part of the loss, so weight decay is none."""

    by_halving: ClassVar[bool] = True

    kind: str = "scgan"
    learning_rate: float = 1e-3
    decay: Literal["none", "cosine", "linear_half"] = "none"
    width: int = 32
    dropout: float = 0.5
    l1_weight: float = 200.0
    rmse_weight: float = 200.0
    matching_weight: float = 20.0
    l2_weight: float = 0.001


@dataclass(frozen=True)
class TransUNetConfig(AdversarialConfig):
    """TransUNet (Chen et al. 2021) trained as Pix2Pix is, one model a tracer."""

    kind: str = "transunet"
    width: int = 32  # a multiple of 4
    units: tuple[int, int, int] = (3, 4, 9)  # residual units at 1/4, 1/8 and 1/16
    dim: int = 512
    layers: int = 8
    heads: int = 8
    dropout: float = 0.1


@dataclass(frozen=True)
class ResViTConfig(AdversarialConfig):
    """ResViT (Dalmaz et al. 2022), its unified form: one model for both tracers."""

    kind: str = "resvit"
    width: int = 16
    kernel: int = 7  # of the first and the last convolution; odd
    middle: int = 256  # channels between the two strided convolutions of a transformer block
    dim: int = 384
    layers: int = 6
    heads: int = 6
    dropout: float = 0.1
    cnn_steps: int = 0  # training steps with the transformer left out, the paper's first stage


@dataclass(frozen=True)
class DDPMConfig(MethodConfig):
    """A conditional DDPM (Ho et al. 2020): one model, MRI concatenated, tracer as class label."""

    kind: str = "ddpm"
    ema: float = 0.9999
    ema_warmup: int = 0  # plain copies before
    steps: int = 1000  # T
    beta_range: tuple[float, float] = (1e-4, 0.02)
    prediction: Literal["epsilon", "sample"] = "epsilon"  # sample: x_0, useful after hundreds of steps, not 100,000s
    sampling_steps: int = 50  # of DDIM; a divisor of T
    eta: float = 0.0  # DDIM's η: 0 deterministic; 1 with all T steps is the paper's ancestral sampler
    channels: tuple[int, ...] = (32, 64, 128, 256)  # multiples of the first, itself a multiple of 4
    blocks: int = 1  # residual blocks a level on the way down; one more on the way up
    attention_levels: tuple[int, ...] = (3,)
    stem: Literal["haar", "none"] = "none"  # haar: 8 channels at half resolution, as in NetworkConfig
    labels: tuple[Literal["sex", "age"], ...] = ()  # what the class label says beside the tracer
    age_edges: tuple[float, ...] = (60.0, 65.0, 70.0, 75.0, 80.0, 85.0)  # of the age bins, in years


# ── controls fitted in closed form ────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DemographicsConfig(MethodConfig):
    """Least squares of each voxel on age and sex, no MRI. What optimisers and batches take has no effect."""

    multiple: ClassVar[int] = 1

    kind: str = "demographics"
    precision: Precision | None = "32-true"  # closed forms lose too much in half precision
    fields: tuple[Literal["age", "sex"], ...] = ("age", "sex")


@dataclass(frozen=True)
class LinearConfig(DemographicsConfig):
    """Ridge regression on MRI, age and sex. Every combination of the lists is tried on validation people."""

    kind: str = "linear"
    mri_components: tuple[int, ...] = (10, 20, 40, 80, 160, 0)  # 0: all, ridge on the whole brain
    pet_components: tuple[int, ...] = (10, 40, 160)  # 0: all; they set the size of the model, two images each
    penalties: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the regressors' mean squared length


METHOD_CONFIGS: dict[str, type[MethodConfig]] = {
    "residual_diffusion": ResidualDiffusionConfig,
    "regression": RegressionConfig,
    "released": ReleasedConfig,
    "pix2pix": Pix2PixConfig,
    "scgan": SCGANConfig,
    "transunet": TransUNetConfig,
    "resvit": ResViTConfig,
    "ddpm": DDPMConfig,
    "linear": LinearConfig,
    "demographics": DemographicsConfig,
}
"""``kind`` → its dataclass. A new method adds a line here and one in `resdm.methods.METHODS`; one from outside this
package is named by ``module:Class`` and needs neither."""


def imported_method(kind: str, where: str) -> type:
    """The class that a ``kind`` of the form ``module:Class`` names, imported.

    Raises
    ------
    ConfigError
        No such module or class; ``where`` starts the message.
    """
    module, _, name = kind.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where} is {kind!r}, and cannot be had: {error}; expected module:Class of an installed package, or of a "
            "file in a folder that PYTHONPATH names"
        ) from error


def _settings_class(kind: str, where: str) -> type[MethodConfig]:
    """The settings of a method from outside: the dataclass that its class annotates as ``config``."""
    found = imported_method(kind, where)
    settings = typing.get_type_hints(found).get("config", MethodConfig) if isinstance(found, type) else None
    if not (isinstance(settings, type) and issubclass(settings, MethodConfig)):
        raise ConfigError(f"{where} is {kind!r}; expected a class with config: a dataclass made from MethodConfig")
    return settings


# ── the work ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TrainingConfig:
    """One loop, one split, one augmentation, one budget for every method."""

    budget: Literal["equal_epochs", "equal_time"] = "equal_epochs"
    epochs: int = 1000  # not used by equal_time
    seconds: float | None = None  # of training steps, the budget of equal_time; turned into a number of steps once
    batch_size: int = 1  # people (sessions) a step, over all devices together, both tracers each
    shift_voxels: int = 2  # augmentation: a translation of up to this many voxels, the same for MRI and PETs
    flip: bool = False  # left–right, the same for all volumes of a person
    # Networks see the brain's box of the grid (resdm.anatomy.working_box); outside, all is 0. Off: on the default
    # phantom it saves little, and no metric gains by it (benchmarks/results/ablation.md); at 128³ it saves two fifths.
    crop: bool = False
    validate_every: int = 10  # epochs; the last step is always validated
    checkpoint_every: int = 500  # optimiser steps
    clip_norm: float | None = None
    accelerator: str = "auto"
    devices: int = 1
    precision: Precision = "32-true"
    channels_last: bool | None = None  # memory format of volumes in the networks, other last bits; None: on AVX2 CPUs
    compile: bool = False  # torch.compile of the networks, in training and sampling; other last bits, minutes to start
    deterministic: bool = True  # CUDA kernels that give the same bits every time, where there are any; CPU always does
    threads: int | None = None  # CPU threads of torch; a number makes results independent of the machine's cores
    keep_memory: bool = True  # CPU: what tensors free stays with the process: the same values, faster on large grids
    workers: int = 0  # processes that load volumes; 0: the memory map is read in the training process


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
    methods: dict[str, MethodConfig] = field(default_factory=lambda: {"ResDM": ResidualDiffusionConfig()})
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
                f"profile {self.profile!r} has no method {name!r}{_suggest(name, self.methods)}; "
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


def derive_seed(*parts: object) -> int:
    """A seed (below 2⁶³) for one use of a profile's seed: ``derive_seed(seed, "order", epoch)``.

    Different uses get unrelated streams, and each is a function of its parts alone: nothing but the parts need be
    stored to draw the same again.
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8]) >> 1


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def load_config(source: str | Path) -> Config:
    """Read a profile: a name (``"phantom"``) or the path of a YAML file.

    A name is looked for as ``configs/<name>.yaml`` in the current folder and its parents, so a notebook
    works from the repository's root and from ``notebooks/`` alike.

    Raises
    ------
    ConfigError
        Unreadable file, unknown key, wrong type or a value out of range: file, key, found, expected.
    """
    path = _find(source)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    tree = {"profile": path.stem} | tree
    config = _build(Config, tree, str(path), "")
    root = path.resolve().parent
    config = dataclasses.replace(config, root=root.parent if root.name == "configs" else root)
    _check(config, str(path))
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionaries and lists, as YAML and JSON hold them, without ``root``."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "root"}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(config)


def method_from_dict(tree: dict[str, Any], where: str) -> MethodConfig:
    """A method's settings from a dictionary with ``kind``, checked like a profile (model folders use it)."""
    return _method(tree, where, "")


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


def _build(cls: type, tree: Any, file: str, at: str) -> Any:
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: {at or 'the file'}: expected a mapping, found {tree!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "root"}
    for key in tree:
        if key not in fields:
            raise ConfigError(
                f"{file}: unknown key {_join(at, key)!r}{_suggest(key, fields)}; "
                f"{at or 'the file'} takes: {', '.join(fields)}"
            )
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], value, file, _join(at, key)) for key, value in tree.items()}
    for name, spec in fields.items():
        missing = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(f"{file}: {_join(at, name)} is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, file: str, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, file, at)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{file}: {at} is {value!r}; expected one of {', '.join(map(str, arguments))}")
        return value
    if hint is MethodConfig:
        return _method(value, file, at)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, file, at)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: {at}: expected a mapping, found {value!r}")
        return {str(key): _convert(arguments[1], item, file, _join(at, key)) for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{file}: {at}: expected a list, found {value!r}")
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, file, f"{at}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"{file}: {at}: expected {len(arguments)} values, found {len(value)}")
        return tuple(_convert(a, v, file, f"{at}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a dot, as text
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{file}: {at}: expected {hint.__name__}, found {value!r}")


def _method(tree: Any, file: str, at: str) -> MethodConfig:
    if not isinstance(tree, dict) or "kind" not in tree:
        raise ConfigError(f"{file}: {at or 'method'} needs a kind: one of {', '.join(METHOD_CONFIGS)}")
    kind = tree["kind"]
    if isinstance(kind, str) and ":" in kind:
        return _build(_settings_class(kind, f"{file}: {_join(at, 'kind')}"), tree, file, at)
    if kind not in METHOD_CONFIGS:
        raise ConfigError(
            f"{file}: {_join(at, 'kind')} is {kind!r}{_suggest(str(kind), METHOD_CONFIGS)}; "
            f"expected one of {', '.join(METHOD_CONFIGS)}, or module:Class"
        )
    return _build(METHOD_CONFIGS[kind], tree, file, at)


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
        demand(method.learning_rate > 0, f"methods.{name}.learning_rate must be more than 0")
        rate = getattr(method, "discriminator_learning_rate", None)
        demand(rate is None or rate > 0, f"methods.{name}.discriminator_learning_rate must be more than 0, or null")
        demand(0 <= method.ema < 1, f"methods.{name}.ema is {method.ema}; expected 0 (none) or a decay below 1")
        demand(
            method.batch_size is None or method.batch_size >= 1,
            f"methods.{name}.batch_size is {method.batch_size}; expected at least 1",
        )
        taken = ("template", "ceiling", "posterior", "real", "mri", "age_sex", "majority", "")  # other table sources
        demand("/" not in name and name not in taken, f"methods: {name!r} cannot be a method's name")
        demand(method.seed is None or method.seed >= 0, f"methods.{name}.seed is {method.seed}; expected 0 or more")
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
        if isinstance(method, ResidualDiffusionConfig):
            low, high = method.eta_range
            demand(
                method.steps >= 1 and 0 < low < high <= 1 and method.kappa > 0,
                f"methods.{name}: needs steps ≥ 1, 0 < eta_range[0] < eta_range[1] ≤ 1 and kappa > 0",
            )
            demand(
                method.sampling_steps is None or 1 <= method.sampling_steps <= method.steps,
                f"methods.{name}.sampling_steps is {method.sampling_steps}; expected 1 to {method.steps}",
            )
            demand(
                0 <= method.start_share <= 1,
                f"methods.{name}.start_share is {method.start_share}; expected 0 to 1",
            )
        if isinstance(method, ReleasedConfig):
            demand(
                (method.prior.context == "pooled" or "attention" in method.mended)
                and method.prior.dim == 8 * method.width,
                f"methods.{name}.prior: the released network takes context pooled, or tokens where mended has "
                f"attention, and dim {8 * method.width}, 8 × its width",
            )
            demand(
                method.width >= 1 and method.mri_shift >= 0 and method.sampling_steps in (None, *range(1, 16)),
                f"methods.{name}: expected width ≥ 1, mri_shift ≥ 0 and sampling_steps 1 to T = 15",
            )
        if isinstance(method, LinearConfig):
            demand(
                all(penalty > 0 for penalty in method.penalties) and bool(method.penalties),
                f"methods.{name}.penalties is {list(method.penalties)}; expected one or more, each above 0",
            )
            for key in ("mri_components", "pet_components"):
                counts = getattr(method, key)
                demand(
                    bool(counts) and min(counts) >= 0,
                    f"methods.{name}.{key} is {list(counts)}; expected one or more numbers from 0, which means all",
                )
        if isinstance(method, DDPMConfig):
            demand(
                method.sampling_steps >= 1 and method.steps % method.sampling_steps == 0,
                f"methods.{name}.sampling_steps is {method.sampling_steps}; expected a divisor of {method.steps}",
            )
            demand(
                method.channels[0] % 4 == 0 and all(c % method.channels[0] == 0 for c in method.channels),
                f"methods.{name}.channels {method.channels}: multiples of the first, itself one of 4",
            )
        prior = getattr(method, "prior", None)
        if prior is not None:
            demand(0 <= prior.dropout < 1, f"methods.{name}.prior.dropout is {prior.dropout}; expected 0 ≤ p < 1")
            demand(
                prior.weights != "openai" or prior.tower is None,
                f"methods.{name}.prior: the openai weights are of ViT-B/32; leave tower out",
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


def _join(at: str, key: Any) -> str:
    return f"{at}.{key}" if at else str(key)


def _suggest(word: str, known: typing.Iterable[str]) -> str:
    lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(word).lower(), lower, n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""
