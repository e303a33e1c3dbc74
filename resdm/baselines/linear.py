"""Two linear controls, fitted in closed form: least squares on age and sex, and ridge regression on MRI, age and sex.

A method that does not beat `Linear` has not used the MRI better than a regression that takes seconds to fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from resdm import attributes
from resdm.batch import PROMPT_FIELDS, TRACERS, Batch, Prior
from resdm.layers.paths import LinearPath, gram_spectrum
from resdm.method import Method, Sessions
from resdm.settings import SEXES, MethodConfig, Precision, further, require


@dataclass(frozen=True)
class DemographicsConfig(MethodConfig):
    """Least squares of each voxel on age and sex, no MRI. Settings of optimisers and batches have no effect."""

    kind: str = "demographics"
    precision: Precision | None = "32-true"  # closed forms lose too much in half precision
    fields: tuple[str, ...] = ("age", "sex")  # columns of the manifest, as in the prompt of ResDM


@dataclass(frozen=True)
class LinearConfig(DemographicsConfig):
    """Ridge regression on MRI, age and sex. Every combination of the lists is tried on validation people."""

    kind: str = "linear"
    mri_components: tuple[int, ...] = (10, 20, 40, 80, 160, 0)  # 0: all, ridge on the whole brain
    pet_components: tuple[int, ...] = (10, 40, 160)  # 0: all; they set the size of the model, two images each
    penalties: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the regressors' mean squared length

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = bool(self.penalties) and min(self.penalties) > 0
        require(positive, "penalties", list(self.penalties), "one or more, each above 0")
        for key in ("mri_components", "pet_components"):
            counts = getattr(self, key)
            require(bool(counts) and min(counts) >= 0, key, list(counts), "one or more numbers from 0, which means all")


Collate = Callable[[list[Any]], Batch]


@dataclass(frozen=True)
class _Scanned:
    """Sessions that have a tracer: MRI and PET (n, V) in the fitted voxels, and their design (n, 1 + fields)."""

    mri: Tensor
    pet: Tensor
    design: Tensor


class _TracerMap(nn.Module):
    """PET = D·pet + slope ⊙ m + (m · readsᵀ) · writes, where m = MRI − D·mri and D holds 1, age and sex."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("pet", "mri", "slope", "reads", "writes"):  # (1 + fields, V) twice, (V,), (components, V) twice
            self.register_buffer(name, torch.empty(0))

    def forward(self, mri: Tensor, design: Tensor) -> Tensor:
        """The PET (B, V) of MRI (B, V) and design (B, 1 + fields); parts that are empty are left out."""
        pet = design @ self.pet
        rest = mri - design @ self.mri if self.mri.numel() else mri
        if self.slope.numel():
            pet = pet + self.slope * rest
        return pet + rest @ self.reads.T @ self.writes if self.reads.numel() else pet


class Demographics(Method):
    """Least squares of every voxel's PET on age and sex, without the MRI.

    Each tracer is fitted on the sessions that have it. Age and sex are standardised over the training sessions; unknown
    ones take the training mean. Only voxels where some training image is not 0 are fitted. Elsewhere, and for a tracer
    that nobody has, the PET is 0. Memory: some six sets of the training images in those voxels, in single precision:
    50 MB on the default phantom, 12 GB for 900 sessions of 128³ voxels of 1.5 mm.
    """

    config: DemographicsConfig
    closed_form = True
    resize = LinearPath.resize

    def __init__(self, config: DemographicsConfig, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        self.register_buffer("voxels", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("scale", torch.zeros(2, len(config.fields)))  # mean and deviation of the design's columns
        if further(config.fields):  # what is known of them, as bytes
            self.register_buffer("catalogue", torch.zeros(0, dtype=torch.uint8))
        self.maps = nn.ModuleDict({tracer: _TracerMap() for tracer in TRACERS})

    @property
    def known(self) -> attributes.Known:
        """Fields besides age and sex that the model accepts, with their values."""
        return attributes.unpack(getattr(self, "catalogue", None))

    @torch.no_grad()
    def fit(self, train: Dataset, validation: Dataset | None, collate: Collate) -> list[dict[str, Any]]:
        """Fit both tracers; returns one row per setting tried."""
        priors, people, tracers = [], [], set()
        for batch in Sessions(train, collate):
            self.voxels |= torch.cat([batch.mri, batch.pet], 1)[0].ne(0).any(0)
            priors.append(batch.prior)
            people += batch.people
            tracers |= {tracer for tracer, has in zip(TRACERS, batch.present[0], strict=True) if has}
        if known := attributes.learn(self.config.fields, Prior.joined(priors), people):
            self.catalogue = attributes.pack(known)
        values = torch.cat([self._values(prior) for prior in priors])  # (n, columns)
        mean = values.nanmean(0).nan_to_num(0.0)
        deviation = (values - mean).square().nanmean(0).sqrt().nan_to_num(0.0)
        self.scale = torch.stack([mean, torch.where(deviation > 0, deviation, 1.0)]).float()
        return [
            {"tracer": tracer} | row
            for channel, tracer in enumerate(TRACERS)
            if tracer in tracers
            for row in self._fit(tracer, *(self._stack(people, collate, channel) for people in (train, validation)))
        ]

    def _fit(self, tracer: str, train: _Scanned, validation: _Scanned | None) -> list[dict[str, Any]]:
        model = self.maps[tracer]
        model.pet = _least_squares(train.design, train.pet)
        score = math.nan
        if validation is not None:
            score = mean_psnr((validation.pet - validation.design @ model.pet).square().mean(1))
        return [{"fit": "age and sex", "validation": score}]

    def _stack(self, people: Dataset | None, collate: Collate, channel: int) -> _Scanned | None:
        """The sessions that have a tracer; None where there is none."""
        rows = []
        for batch in () if people is None else Sessions(people, collate):
            if batch.present[0, channel]:
                mri, pet = (image[self.voxels].float() for image in (batch.mri[0, 0], batch.pet[0, channel]))
                rows.append((mri, pet, self._design(batch.prior)[0]))
        return _Scanned(*map(torch.stack, zip(*rows, strict=True))) if rows else None

    def _values(self, prior: Prior) -> Tensor:
        """Age in years, sex as 0 or 1, and further fields (B, columns), NaN where unknown."""
        known = {"age": prior.age, "sex": [SEXES.index(sex) if sex in SEXES else None for sex in prior.sex]}
        named = [known[field] for field in self.config.fields if field in PROMPT_FIELDS]
        columns = [[math.nan if v is None else float(v) for v in values] for values in named]
        columns += attributes.design_columns(prior, self.known)
        return torch.tensor(columns, dtype=torch.float64).reshape(len(columns), len(prior)).T

    def _design(self, prior: Prior) -> Tensor:
        """1, age and sex (B, 1 + fields), standardised; unknown is 0, the mean."""
        mean, deviation = self.scale
        values = (self._values(prior).to(mean) - mean) / deviation
        return torch.cat([values.new_ones(len(prior), 1), values.nan_to_num(0.0)], 1)

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """One pass; ``generator`` and ``steps`` are not used."""
        design, inside = self._design(prior), mri[:, 0, self.voxels].float()
        pet = mri.new_zeros((len(mri), len(TRACERS), *self.shape), dtype=torch.float32)
        for channel, model in enumerate(self.maps.values()):
            if model.pet.numel():
                pet[:, channel, self.voxels] = model(inside, design).clamp(0, 1)
        return pet


class Linear(Demographics):
    """Ridge regression of the PET on MRI, age and sex, in the form that predicts validation people best.

    Age and sex enter without penalty: MRI and PET are residuals of their regression on both (Frisch, Waugh, Lovell).
    Two families are tried on the residuals, with every setting of the configuration's lists:

    - ``components``: scores of the MRI's first principal components → scores of the PET's first, by ridge. With all
      components this is ridge regression of every voxel on the whole brain, in its dual form.
    - ``voxelwise``: each PET voxel on the MRI at that voxel, by ridge.

    Each tracer keeps the fit with the highest PSNR over the fitted voxels, before clipping, averaged over validation
    sessions; ``history.csv`` lists all. The penalty is in units of the regressors' mean squared length: of the mean
    eigenvalue of the MRI's Gram matrix, or of a voxel's mean sum of squares.
    """

    config: LinearConfig

    def _fit(self, tracer: str, train: _Scanned, validation: _Scanned | None) -> list[dict[str, Any]]:
        if validation is None:
            raise ValueError(
                f"linear: no validation session has {tracer} PET, so components and penalty cannot be chosen; raise "
                "cohort.split.validation, or leave the method out of the profile"
            )
        if len(train.pet) <= (rank := int(torch.linalg.matrix_rank(train.design))):
            raise ValueError(
                f"linear: {len(train.pet)} training sessions have {tracer} PET, expected more than {rank}; leave the "
                "method out of the profile"
            )
        super()._fit(tracer, train, validation)
        model, config = self.maps[tracer], self.config
        model.mri = _least_squares(train.design, train.mri)
        (mri, pet), (new_mri, new_pet) = (
            (part.mri - part.design @ model.mri, part.pet - part.design @ model.pet) for part in (train, validation)
        )
        axes, basis = _principal_axes(mri), _principal_axes(pet)  # (n, k): weights of sessions, unit components
        scores, target = mri @ mri.T @ axes, pet @ pet.T @ basis  # people × people first: no second set of images
        new_scores, new_target = new_mri @ mri.T @ axes, new_pet @ pet.T @ basis
        power = scores.square().sum(0)  # the eigenvalues
        rows, fits = [], []
        for count in config.mri_components:
            k = slice(count or None)
            for penalty in config.penalties:
                ridge = scores[:, k].T @ target / (power[k] + penalty * power.mean())[:, None]  # (k, PET components)
                predicted = new_scores[:, k] @ ridge
                gain = (2 * predicted * new_target - predicted.square()).cumsum(1)  # error reduction by components
                for pet_count in config.pet_components:
                    q = min(pet_count or gain.shape[1], gain.shape[1])
                    error = (new_pet.square().sum(1) - gain[:, q - 1]) / new_pet.shape[1]
                    rows.append({"fit": "components", "mri_components": min(count or len(power), len(power)),
                                 "pet_components": q, "penalty": penalty, "validation": mean_psnr(error)})  # fmt: skip
                    fits.append((None, axes[:, k] @ ridge[:, :q], basis[:, :q]))
        products, squares = (mri * pet).sum(0), mri.square().sum(0)
        for penalty in config.penalties:
            slope = products / (squares + penalty * squares.mean())
            error = (new_pet - slope * new_mri).square().mean(1)
            rows.append({"fit": "voxelwise", "penalty": penalty, "validation": mean_psnr(error)})
            fits.append((slope, None, None))
        slope, reads, writes = fits[max(range(len(rows)), key=lambda i: rows[i]["validation"])]
        if slope is not None:
            model.slope = slope
        else:
            model.reads, model.writes = reads.T @ mri, writes.T @ pet
        return rows


def _least_squares(design: Tensor, values: Tensor) -> Tensor:
    """Coefficients (fields, V) of values (n, V), of least norm where the design (n, fields) lacks full rank."""
    return torch.linalg.pinv(design.double()).to(values) @ values


def _principal_axes(rows: Tensor) -> Tensor:
    """Weights (n, k) of rows (n, V) that make their principal components, the columns of ``rows.T @ weights``."""
    power, vectors = gram_spectrum(rows)
    above_rounding = power > 1e-7 * power[-1]
    return (vectors[:, above_rounding] / power[above_rounding].sqrt()).flip(1).to(rows)


def mean_psnr(mse: Tensor) -> float:
    """PSNR (data range 1) of each session's mean squared error, averaged over sessions."""
    return float((-10 * mse.double().log10()).mean())
