"""A trained model, people and a condition → predicted PET volumes on disk.

A person's result depends on the model, the prompt, the seed and the person only. Each session is synthesised alone,
both tracers in one pass, with noise from a seed made of its name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from tqdm.auto import tqdm

from resdm.batch import TRACERS, Prior
from resdm.checkpoint import load_model
from resdm.cpu_runtime import computes_bf16, set_up
from resdm.io import atomic, sha256, stored_json, write_json
from resdm.method import Method
from resdm.settings import PROMPT_FIELDS, SEXES, check_person, derive_seed, fields_of, further
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.apps.model_folder import LABELS, ModelCard, check_model, load_card
from resdm_suite.apps.shards import write_timing
from resdm_suite.evaluation.suvr import to_suvr
from resdm_suite.paths import bids_fields, bids_uri, image_path, sidecar_path, std_path, stem, synthetic_path
from resdm_suite.preprocessing.dataset import read_attributes
from resdm_suite.preprocessing.suvr import units
from resdm_suite.preprocessing.t1 import T1_UNITS
from resdm_suite.profiles import Config, check_condition

REVISION = 1
"""Raise it whenever the same model, MRI and prompt give another PET, so that stored ones are made again."""

CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}
"""Attention on a CPU, for torch's FLOP counter, which counts attention on CUDA only."""


class SynthesisError(ValueError):
    """Input that a model cannot take, or output that is not an image."""


def condition_prior(
    condition: str,
    age: Sequence[float | None],
    sex: Sequence[str | None],
    seed: int,
    more: Mapping[str, Sequence[float | str | None]] | None = None,
    people: Sequence[str] | None = None,
) -> Prior:
    """Contents of the prompts of a list of sessions under a condition.

    Parameters
    ----------
    condition : str
        See `resdm_suite.profiles.CONDITIONS`.
    age : sequence of float or None
        Years; NaN counts as unknown and is left out of the prompt.
    sex : sequence of {"F", "M"} or None
    seed : int
        Seed of the shuffle, in which everyone gets the values of another person (of the first session).
    more : mapping, optional
        Further attributes, by field.
    people : sequence of str, optional
        The person of each session; each session is another person's by default.

    Raises
    ------
    ConfigError
        Unknown condition or field, or an age out of range.
    """
    check_condition(condition, "prompt", (*PROMPT_FIELDS, *(more or {})))
    age = tuple(None if value is None or pd.isna(value) else float(value) for value in age)
    sex = tuple(None if value is None or pd.isna(value) else str(value) for value in sex)
    factual, n = Prior(age, sex, more={name: tuple(values) for name, values in (more or {}).items()}), len(age)
    if condition in ("factual", "tracer_only"):
        return factual if condition == "factual" else factual.without(*factual.fields)
    values = {name: factual.values(name) for name in factual.fields}
    family, _, field = condition.partition("_")
    if family in PROMPT_FIELDS:
        return factual.stating(values | {family: (float(field) if family == "age" else field,) * n})
    if family == "no":
        return factual.without(field)
    if family == "wrong":
        return factual.stating(values | {field: _wrong(values[field], SEXES if field == "sex" else ())})
    names, first, who = np.unique(range(n) if people is None else list(people), return_index=True, return_inverse=True)
    order = np.random.default_rng(derive_seed(seed, "shuffled")).permutation(len(names))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # one cycle through everyone
    source = first[other[who]]
    names = [field] if field else list(values)
    return factual.stating(values | {name: tuple(values[name][i] for i in source) for name in names})


def _wrong(values: Sequence[float | str | None], categories: Sequence[str]) -> tuple[float | str | None, ...]:
    """Of numbers the one at the other end of their order, of categories the next one; None stays.

    The number in the middle of an odd count of different numbers becomes the next one.
    """
    names = sorted({value for value in values if value is not None})
    if names and isinstance(names[0], str):
        names = list(categories) or names
        other = dict(zip(names, [*names[1:], names[0]], strict=True))
    else:
        other = dict(zip(names, reversed(names), strict=True))
        if len(names) % 2 and len(names) > 1:
            other[names[len(names) // 2]] = names[len(names) // 2 + 1]
    return tuple(None if value is None else other[value] for value in values)


@dataclass(frozen=True)
class Model:
    """A trained method on a device, with its card."""

    method: Method
    card: ModelCard
    device: torch.device

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", *, trust_code: bool = False) -> Model:
        """From a model folder; ``auto`` takes a GPU if there is one, ``trust_code`` is as in `load_model`."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        card, method = load_card(folder, trust_code=trust_code), load_model(folder, device, trust_code=trust_code)
        method.adapt(card.config.training, torch.device(device))
        return cls(method, card, torch.device(device))

    @classmethod
    def of_profile(cls, config: Config, name: str) -> Model:
        """A trained method of a profile; sets up the CPU as its training does.

        Raises
        ------
        CheckpointError
            No model, or one of other settings than the profile's.
        """
        check_model(load_card(config.model(name)), config, name)
        set_up(config.training)
        return cls.load(config.model(name))

    @property
    def origin(self) -> dict[str, Any]:
        """Entries of a sidecar that name the model."""
        return {
            "sha256": self.card.digest,
            "profile": self.card.config.profile,
            "step": self.card.step,
            "revision": REVISION,
        }

    @property
    def grid(self) -> Grid:
        """The model's grid."""
        return Grid.of(self.card.config.preprocess.grid)

    def synthesise(
        self, mri: np.ndarray, age: float | None, sex: str | None, *, seed: int, steps: int | None = None,
        more: Mapping[str, float | str | None] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Both PETs of one person.

        Parameters
        ----------
        mri : ndarray (X, Y, Z)
            Preprocessed T1 on `grid`, RAS+, intensities in [0, 1].
        age, sex
            Values in the prompt; None is left out.
        seed : int
        steps : int, optional
            Sampling steps; the model's by default.
        more : mapping, optional
            Further attributes in the prompt, likewise.

        Returns
        -------
        ndarray (2, X, Y, Z), float32
            Amyloid, tau, in [0, 1]; 0 outside the MNI brain if ``preprocess.mask`` is set.

        Raises
        ------
        SynthesisError
            Another grid, non-finite voxels, intensities outside [0, 1]; or non-finite output.
        """
        mri = np.asarray(mri, dtype=np.float32)
        if mri.shape != self.grid.shape:
            raise SynthesisError(
                f"MRI of {mri.shape} voxels; the model works on {self.grid.shape} of {self.grid.voxel_mm} mm: "
                "preprocess it with the model's config.yaml"
            )
        if not np.isfinite(mri).all():
            raise SynthesisError(f"MRI: {np.count_nonzero(~np.isfinite(mri))} voxels are not finite (NaN or infinite)")
        if mri.min() < -1e-3 or mri.max() > 1 + 1e-3:
            raise SynthesisError(f"MRI: intensities from {mri.min():.3g} to {mri.max():.3g}; expected [0, 1]")
        volume = torch.from_numpy(mri).to(self.device)[None, None]  # (1, 1, X, Y, Z)
        generator = torch.Generator(self.device).manual_seed(seed)
        prior = Prior((age,), (sex,), more={name: (value,) for name, value in (more or {}).items()})
        with torch.no_grad(), self._autocast():
            pet = self.method.synthesise(volume, prior, generator, steps=steps)  # (1, 2, X, Y, Z)
        pet = pet[0].float().cpu().numpy()
        if self.card.config.preprocess.mask:  # every real volume is 0 there
            pet = np.where(mni_map("brain", self.grid), pet, np.float32(0))
        if not np.isfinite(pet).all():
            raise SynthesisError(f"{self.card.folder}: the model's output is not finite; train it again")
        return pet

    def draws(
        self, mri: np.ndarray, age: float | None, sex: str | None, *, seed: int, samples: int, **others: Any
    ) -> Iterator[np.ndarray]:
        """Yield several syntheses of one person, (2, X, Y, Z) each; the first is that of `synthesise`."""
        for i in range(samples):
            yield self.synthesise(mri, age, sex, seed=derive_seed(seed, "sample", i) if i else seed, **others)

    def _autocast(self) -> AbstractContextManager:
        """The precision of training; 32 bits on a CPU without bfloat16."""
        precision, cpu = self.card.config.precision(self.card.name), self.device.type == "cpu"
        if precision == "bf16-mixed" and (not cpu or computes_bf16()):
            return torch.autocast(self.device.type, torch.bfloat16)
        if precision == "16-mixed" and not cpu:
            return torch.autocast(self.device.type, torch.float16)
        return nullcontext()

    def to_suvr(self, pet: np.ndarray, tracer: str) -> tuple[np.ndarray, dict[str, Any]]:
        """A PET (X, Y, Z) in [0, 1] turned to SUVR, if the model has a scale; and sidecar entries on the scale."""
        preprocess = self.card.config.preprocess
        if not preprocess.in_suvr:
            return pet, {}
        suvr = to_suvr(pet, preprocess.suvr_range[tracer])
        suvr = np.where(mni_map("brain", self.grid), suvr, 0) if preprocess.mask else suvr
        return suvr.astype(np.float32), {"Units": "SUVR", "intensity": {"kind": "suvr"}}

    def sidecar(self, tracer: str, label: str, prompt: dict[str, Any], **extra: Any) -> dict[str, Any]:
        """The JSON sidecar of a synthetic volume, see `synthetic_sidecar`."""
        card = self.card
        head = card.config, card.name, card.notice
        return synthetic_sidecar(*head, tracer, label, prompt, model=self.origin, **extra)

    def write(self, path: Path, pet: np.ndarray, sidecar: dict[str, Any]) -> None:
        """A volume (X, Y, Z) as NIfTI in MNI space, then its sidecar: with the sidecar, both are complete."""
        save_image(path, self.grid.image(pet.astype(np.float32)), self.card.notice)
        write_json(sidecar_path(path), sidecar | {"sha256": sha256(path)})


def synthetic_sidecar(
    config: Config, method: str, notice: str, tracer: str, label: str, prompt: dict[str, Any],
    *, sources: Sequence[str] = (), model: dict[str, Any] | None = None, **extra: Any,
) -> dict[str, Any]:  # fmt: skip
    """The JSON sidecar of a synthetic volume on the profile's grid, of a tracer's BIDS label, from BIDS URIs."""
    preprocess = config.preprocess
    intensity = {"kind": preprocess.intensity, "suvr_range": list(preprocess.suvr_range[tracer])}
    head = synthetic_head(config, method, notice, model) | {"tracer": tracer, "prompt": prompt, **extra}
    fields = bids_fields(units(preprocess, tracer), preprocess.mask, label, sources=sources)
    return head | fields | {"intensity": intensity}


def synthetic_head(config: Config, method: str, notice: str, model: dict[str, Any] | None = None) -> dict[str, Any]:
    """First entries of the description of a synthetic volume."""
    head = {"synthetic": True, "notice": notice, "cohort_notice": config.notice, "method": method}
    return head if model is None else head | {"model": model}


def save_image(path: Path, image: nib.Nifti1Image, notice: str) -> None:
    """Write an image with a notice in its header, atomically."""
    with atomic(path) as temporary:
        nib.save(with_notice(image, notice), temporary)


def with_notice(image: nib.Nifti1Image, notice: str) -> nib.Nifti1Image:
    """The image, with a notice in its header."""
    image.header["descrip"] = notice.encode("ascii", "replace")[:79]
    return image


def sampling_steps(card: ModelCard, steps: int | None = None) -> int | None:
    """Sampling steps: those asked for, else the model's; None for a method without steps."""
    return steps or getattr(card.settings, "sampling_steps", None) or getattr(card.settings, "steps", None)


def mean_and_std(draws: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample standard deviation (n − 1) of draws of one shape, float32; the latter NaN for a single draw.

    Welford's recurrence: one draw at a time is in memory.
    """
    n, mean, squares = 0, 0.0, 0.0
    for draw in draws:
        n += 1
        step = draw.astype(np.float64) - mean
        mean = mean + step / n
        squares = squares + step * (draw - mean)
    if n == 0:
        raise ValueError("mean_and_std: no draw")
    std = np.sqrt(squares / (n - 1)) if n > 1 else np.full_like(mean, np.nan)
    return mean.astype(np.float32), std.astype(np.float32)


def synthesise_people(
    model: Model | str | Path,
    people: pd.DataFrame,
    mri: Callable[[int], np.ndarray],
    out: str | Path,
    *,
    condition: str = "factual",
    seed: int | None = None,
    steps: int | None = None,
    samples: int = 1,
    measure: Callable[[np.ndarray, int], dict[str, float]] | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Path:
    """Synthetic PET of every session of a list, under one condition.

    Existing files of the same model, prompt and seed stay.

    Parameters
    ----------
    people : DataFrame
        One row per session: person, session, age, sex and the model's further fields; amyloid_tracer and tau_tracer
        name the files, if given.
    mri : callable
        Row number → preprocessed T1 (X, Y, Z), intensities in [0, 1].
    out : path
        ``predictions/<method>/<condition>``: gets ``<person>/<session>/pet/…_desc-synth_pet.nii.gz`` with sidecars.
    condition : str
        See `condition_prior`.
    seed, steps : int, optional
        The model's by default.
    samples : int
        If more than 1, mean and standard deviation (``…_desc-synthstd_pet``) over samples are written.
    measure : callable, optional
        A sample's PET (X, Y, Z) and its channel → values; the sidecar gets their mean and standard deviation over
        samples under ``measured``.
    shard : (int, int)
        Part of the list to make, and number of parts: (1, n) takes sessions 0, n, 2n, … Conditions are drawn for the
        whole list. ``timing.json`` holds the cost of the sessions made by a call, ``timing_<i>of<n>.json`` of a part;
        a call without shard that finds everything made joins them.
    """
    part, parts = shard
    if not 1 <= part <= parts:
        raise ValueError(f"shard {part}/{parts}: expected i/n with 1 ≤ i ≤ n")
    model = model if isinstance(model, Model) else Model.load(model)
    seed = model.card.config.seed if seed is None else seed
    steps = sampling_steps(model.card, steps)
    more = read_attributes(people, further(fields_of(model.card.settings)), "the list of people", model.method.known)
    values = people["age"].tolist(), people["sex"].tolist()
    prior = condition_prior(condition, *values, seed, more, people["person"].tolist())
    rows = people.to_dict("records")
    for i, row in enumerate(rows):  # before any work starts
        check_person(prior.age[i], prior.sex[i], f"row {i}: {row['person']} {row['session']}")
    extra = {"condition": condition, "seed": seed, "steps": steps} | ({"samples": samples} if samples > 1 else {})
    seconds, counter = [], FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    jobs = list(zip(rows, prior.people(), range(len(rows)), strict=True))[part - 1 :: parts]
    for row, prompt, i in tqdm(jobs, desc=f"{model.card.name} {condition}", unit="session", disable=not progress):
        who = row["person"], row["session"]
        labels = {tracer: _label(row, tracer, model.card) for tracer in TRACERS}
        sources = [f"bids:volumes:{row['t1w']}"] if "t1w" in row else []
        files = [synthetic_path(out, *who, label) for label in labels.values()]
        sidecars = [model.sidecar(*tracer, prompt, sources=sources, **extra) for tracer in labels.items()]
        if all(_is_done(model, file, sidecar, samples) for file, sidecar in zip(files, sidecars, strict=True)):
            continue
        start = time.perf_counter()
        try:
            with nullcontext() if seconds else counter:
                known = {"more": {name: prompt[name] for name in more}, "steps": steps}
                own = {"seed": derive_seed(seed, *who), "samples": samples}
                draws = list(model.draws(mri(i), prompt["age"], prompt["sex"], **own, **known))
        except SynthesisError as error:
            raise SynthesisError(f"{' '.join(who)}: {error}") from error
        seconds.append(time.perf_counter() - start)
        for channel, (file, sidecar) in enumerate(zip(files, sidecars, strict=True)):
            _write(model, file, [draw[channel] for draw in draws], sidecar, channel, measure)
    if samples == 1:
        flop = counter.get_total_flops() if seconds else 0
        write_timing(Path(out), seconds, flop, model.device.type, steps, shard, len(jobs))
    return Path(out)


def _label(row: dict[str, Any], tracer: str, card: ModelCard) -> str:
    label = row.get(f"{tracer}_tracer")
    return card.labels.get(tracer, LABELS[tracer]) if label is None or pd.isna(label) or label == "" else label


def _write(
    model: Model, file: Path, draws: list[np.ndarray], sidecar: dict[str, Any], channel: int, measure: Callable | None
) -> None:
    """One sample, or mean and standard deviation of several."""
    sidecars = _sidecars(model, file, sidecar, len(draws))
    if len(draws) > 1:
        values = pd.DataFrame([{} if measure is None else measure(draw, channel) for draw in draws])
        measured = {name: [float(values[name].mean()), float(values[name].std())] for name in values}
        sidecars[std_path(file)] |= {"measured": measured}
    volumes = draws if len(draws) == 1 else mean_and_std(draws)
    for (path, entries), volume in zip(sidecars.items(), volumes, strict=True):
        model.write(path, volume, entries)


def _sidecars(model: Model, file: Path, sidecar: dict[str, Any], samples: int) -> dict[Path, dict[str, Any]]:
    """The files of a synthesis and their sidecars: one sample, or mean and standard deviation of several."""
    if samples == 1:
        return {file: sidecar}
    of_difference = units(model.card.config.preprocess, sidecar["tracer"], difference=True)
    std = {"statistic": "standard deviation over samples", "Units": of_difference}
    return {file: sidecar | {"statistic": "mean over samples"}, std_path(file): sidecar | std}


def _is_done(model: Model, file: Path, sidecar: dict[str, Any], samples: int) -> bool:
    """Whether a volume exists with exactly this sidecar."""
    for path, entries in _sidecars(model, file, sidecar, samples).items():
        stored = stored_json(sidecar_path(path)) or {}
        stored.pop("measured", None)
        if not path.is_file() or stored != entries | {"sha256": sha256(path)}:
            return False
    return True


def synthesise_mri(
    model: Model, mri: np.ndarray, out: str | Path, *, age: float | None, sex: str | None, seed: int,
    steps: int | None = None, samples: int = 1, prefix: str = "sub-01", source: dict[str, Any] | None = None,
    raw: str = "", each: Callable[[], None] | None = None, more: Mapping[str, float | str] | None = None,
) -> tuple[dict[str, Path], dict[str, np.ndarray]]:  # fmt: skip
    """The PETs of one real MRI, in MNI space, in SUVR where the model has its scale: the mean over samples.

    Each has the BIDS label of the tracer that the model was trained on; one without training scans is left out.

    Parameters
    ----------
    mri : ndarray (X, Y, Z)
        T1 preprocessed with the model's settings, intensities in [0, 1].
    age, sex
        Values in the prompt; None is left out.
    prefix : str
        BIDS entities at the start of the file names, see `bids_prefix`.
    source : dict, optional
        Origin of the MRI (file name, digest, transform), for the sidecars.
    raw : str
        BIDS URI of the MRI.
    each : callable, optional
        Called after every sample.
    more : mapping, optional
        Further attributes in the prompt.

    Returns
    -------
    files : dict of str to Path
        ``amyloid``, ``tau`` and ``mri``, the T1 on the same grid: NIfTI with sidecars.
    pets : dict of str to ndarray (X, Y, Z)
        The PETs in [0, 1].
    """

    def draws() -> Iterator[np.ndarray]:
        for pet in model.draws(mri, age, sex, seed=seed, samples=samples, steps=steps, more=more):
            yield pet
            if each is not None:
                each()

    mean, _ = mean_and_std(draws())
    pets = {tracer: pet for tracer, pet in zip(TRACERS, mean, strict=True) if tracer in model.card.labels}
    files, t1 = {}, image_path(out, prefix, "preproc")
    extra = {"condition": "factual", "seed": seed, "steps": sampling_steps(model.card, steps), "samples": samples}
    for tracer, pet in pets.items():
        label, (volume, entries) = model.card.labels[tracer], model.to_suvr(pet, tracer)
        prompt = {"age": age, "sex": sex, **(more or {})}
        known = extra | {"training_scans": model.card.scans.get(tracer), "source": source}
        sidecar = model.sidecar(tracer, label, prompt, sources=[bids_uri(t1, out)], **known)
        files[tracer] = image_path(out, prefix, "synth", label)
        model.write(files[tracer], volume, sidecar | {"statistic": "mean over samples"} | entries)
    with atomic(t1) as temporary:
        nib.save(model.grid.image(np.asarray(mri, dtype=np.float32)), temporary)
    fields = bids_fields(T1_UNITS, model.card.config.preprocess.mask, sources=[raw] if raw else [])
    write_json(sidecar_path(t1), fields | {"source": source})
    return files | {"mri": t1}, pets


def check_phantom(card: ModelCard, allowed: bool) -> None:
    """Refuse a model that was trained on phantoms only, unless it is allowed."""
    if card.phantom and not allowed:
        raise SynthesisError(
            f"{card.folder}: this model was trained on phantoms only; its output for a real MRI has no meaning for the "
            "person. To try it nevertheless, allow it (--allow-phantom-model); every output will carry a notice"
        )


def bids_prefix(file: str | Path) -> str:
    """BIDS entities of the outputs of a T1: those of its BIDS name, else ``sub-<letters and digits of the name>``.

    Of its name's, only those that a PET may have.

    >>> bids_prefix("sub-07_ses-M12_acq-mprage_run-1_T1w.nii.gz"), bids_prefix("my scan.nii")
    ('sub-07_ses-M12_run-1', 'sub-myscan')
    """
    name = stem(Path(file).name)
    if found := re.fullmatch(r"(sub-[a-zA-Z0-9]+(?:_[a-zA-Z]+-[a-zA-Z0-9]+)*)_T1w", name):
        return "_".join(part for part in found[1].split("_") if part.startswith(("sub-", "ses-", "run-")))
    return f"sub-{re.sub('[^a-zA-Z0-9]', '', name.removesuffix('_T1w')) or '01'}"
