"""A trained model, people and a condition → predicted PET volumes on disk.

A person's result depends on the model, the prompt, the seed and the person alone: each session is synthesised by itself
(both tracers in one pass), with noise drawn from a seed made of its name. So the same volumes come out whoever else is
in the list, in whatever order, and however often a run was killed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from resdm.cpu_runtime import computes_bf16
from resdm.io import atomic, write_json
from resdm.method import Method
from resdm.settings import SEXES, check_person, derive_seed
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.apps.model_folder import ModelCard, load_card
from resdm_suite.paths import sidecar_path, std_path, synthetic_name, synthetic_path
from resdm_suite.profiles import check_condition

LABELS = {"amyloid": "18FAV45", "tau": "18FAV1451"}
"""BIDS labels of the tracers where a person has no real PET to take them from."""


class SynthesisError(ValueError):
    """Input that a model cannot take, or output that is no image."""


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────


def condition_prior(condition: str, age: Sequence[float | None], sex: Sequence[str | None], seed: int) -> Prior:
    """What the prompts of a list of people say under a condition.

    Parameters
    ----------
    condition : str
        A key of `resdm_suite.profiles.CONDITIONS`, ``age_<years>``, ``sex_F`` or ``sex_M``.
    age : sequence of float or None
        Years; NaN counts as unknown, and what is unknown stays unsaid.
    sex : sequence of {"F", "M"} or None
    seed : int
        Of the shuffle. Nobody keeps their own place.

    Raises
    ------
    ConfigError
        No such condition, or an age out of range.
    """
    check_condition(condition, "prompt")
    age = tuple(None if value is None or pd.isna(value) else float(value) for value in age)
    sex = tuple(None if value is None or pd.isna(value) else str(value) for value in sex)
    own, n = Prior(age, sex), len(age)
    match condition:
        case "factual":
            return own
        case "no_age":
            return own.without("age")
        case "no_sex":
            return own.without("sex")
        case "tracer_only":
            return own.without("age", "sex")
        case "wrong_sex":
            other = dict(zip(SEXES, reversed(SEXES), strict=True)) | {None: None}
            return Prior(age, tuple(other[value] for value in sex))
        case "shuffled_age" | "shuffled":
            order = np.random.default_rng(derive_seed(seed, "shuffled")).permutation(n)
            source = np.empty(n, dtype=int)
            source[order] = np.roll(order, 1)  # one cycle through everyone
            shuffled = tuple(age[i] for i in source)
            return Prior(shuffled, sex if condition == "shuffled_age" else tuple(sex[i] for i in source))
    family, value = condition.split("_")
    return Prior((float(value),) * n, sex) if family == "age" else Prior(age, (value,) * n)


# ── a model ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Model:
    """A trained method on a device, with its card."""

    method: Method
    card: ModelCard
    device: torch.device

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Model:
        """From a model folder; ``auto`` takes a GPU where there is one."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        card, method = load_card(folder), load_model(folder, device)
        method.adapt(card.config.training, torch.device(device))
        return cls(method, card, torch.device(device))

    @property
    def grid(self) -> Grid:
        """The grid that it works on."""
        return Grid.of(self.card.config.preprocess.grid)

    def synthesise(
        self, mri: np.ndarray, age: float | None, sex: str | None, *, seed: int, steps: int | None = None
    ) -> np.ndarray:
        """Both PETs of one person.

        Parameters
        ----------
        mri : ndarray (X, Y, Z)
            Preprocessed T1 on `grid`, RAS+, intensities in [0, 1].
        age, sex
            What the prompt says; ``None`` leaves it out.
        seed : int
        steps : int, optional
            Sampling steps; the model's own by default.

        Returns
        -------
        ndarray (2, X, Y, Z), float32
            Amyloid, tau, in [0, 1]; 0 outside the MNI brain where preprocessing makes it so (``preprocess.mask``).

        Raises
        ------
        SynthesisError
            Another grid, voxels that are not finite, intensities outside [0, 1]; or output that is not finite.
        """
        mri = np.asarray(mri, dtype=np.float32)
        if mri.shape != self.grid.shape:
            raise SynthesisError(
                f"MRI of {mri.shape} voxels; the model works on {self.grid.shape} of {self.grid.voxel_mm} mm: "
                "preprocess it with the model's own config.yaml"
            )
        if not np.isfinite(mri).all():
            raise SynthesisError(f"MRI: {np.count_nonzero(~np.isfinite(mri))} voxels are not finite (NaN or infinite)")
        if mri.min() < -1e-3 or mri.max() > 1 + 1e-3:
            raise SynthesisError(f"MRI: intensities from {mri.min():.3g} to {mri.max():.3g}; expected [0, 1]")
        volume = torch.from_numpy(mri).to(self.device)[None, None]  # (1, 1, X, Y, Z)
        generator = torch.Generator(self.device).manual_seed(seed)
        with torch.no_grad(), self._autocast():
            pet = self.method.synthesise(volume, Prior((age,), (sex,)), generator, steps=steps)  # (1, 2, X, Y, Z)
        pet = pet[0].float().cpu().numpy()
        if self.card.config.preprocess.mask:  # there every real volume is 0
            pet = np.where(mni_map("brain", self.grid), pet, np.float32(0))
        if not np.isfinite(pet).all():
            raise SynthesisError(f"{self.card.folder}: the model's output is not finite; train it again")
        return pet

    def draws(
        self,
        mri: np.ndarray,
        age: float | None,
        sex: str | None,
        *,
        seed: int,
        samples: int,
        steps: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Several syntheses of one person, under seeds made of ``seed``; the first is that of `synthesise`.

        Parameters are those of `synthesise`; yields (2, X, Y, Z) so many times.
        """
        for i in range(samples):
            yield self.synthesise(mri, age, sex, seed=derive_seed(seed, "sample", i) if i else seed, steps=steps)

    def _autocast(self) -> AbstractContextManager:
        """The precision of training; 32 bits on a CPU that does not compute in it."""
        precision, cpu = self.card.config.precision(self.card.name), self.device.type == "cpu"
        if precision == "bf16-mixed" and (not cpu or computes_bf16()):
            return torch.autocast(self.device.type, torch.bfloat16)
        if precision == "16-mixed" and not cpu:
            return torch.autocast(self.device.type, torch.float16)
        return nullcontext()

    def sidecar(self, tracer: str, age: float | None, sex: str | None, **extra: Any) -> dict[str, Any]:
        """What stands beside a synthetic volume."""
        preprocess = self.card.config.preprocess
        return {
            "synthetic": True,
            "notice": self.card.notice,
            "cohort_notice": self.card.config.notice,
            "method": self.card.name,
            "model": {"sha256": self.card.digest, "profile": self.card.config.profile, "step": self.card.step},
            "tracer": tracer,
            "prompt": {"age": age, "sex": sex},
            **extra,
            "space": "MNI152",
            "masked": preprocess.mask,
            "intensity": {"kind": preprocess.intensity, "suvr_range": list(preprocess.suvr_range[tracer])},
        }

    def write(self, path: Path, pet: np.ndarray, sidecar: dict[str, Any]) -> None:
        """A volume (X, Y, Z) as NIfTI in MNI space, then its sidecar, whose presence says that both are whole."""
        image = self.grid.image(pet.astype(np.float32))
        image.header["descrip"] = self.card.notice.encode("ascii", "replace")[:79]
        with atomic(path) as temporary:
            nib.save(image, temporary)
        write_json(sidecar_path(path), sidecar)


def sampling_steps(card: ModelCard, steps: int | None = None) -> int | None:
    """Sampling steps as they will be: those asked for, else the model's; ``None`` for a method without."""
    return steps or getattr(card.settings, "sampling_steps", None) or getattr(card.settings, "steps", None)


def mean_and_std(draws: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample standard deviation (n − 1) over draws of one shape, float32; the latter NaN for a single draw.

    By Welford's recurrence, so the draws are never held together.
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


# ── many people ───────────────────────────────────────────────────────────────────────────────────


def synthesise_people(
    model: Model | str | Path,
    people: pd.DataFrame,
    mri: Callable[[int], np.ndarray],
    out: str | Path,
    *,
    condition: str = "factual",
    seed: int | None = None,
    steps: int | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Path:
    """Synthetic PET of every session of a list, under one condition.

    Parameters
    ----------
    model : Model or path
        A model folder, or one already loaded.
    people : DataFrame
        A row a session: person, session, age, sex; amyloid_tracer and tau_tracer name the files, where given.
    mri : callable
        Row number → preprocessed T1 (X, Y, Z), intensities in [0, 1].
    out : path
        ``predictions/<method>/<condition>``.
    condition : str
        See `condition_prior`.
    seed : int, optional
        The model's own by default.
    steps : int, optional
        Sampling steps; the model's own by default.
    shard : (int, int)
        Which part of the list to make, of how many: (1, n) takes sessions 0, n, 2n, … Conditions are of the whole list,
        so the parts, made anywhere in any order, are the files that one call makes.

    Returns
    -------
    Path
        ``out``, with ``<person>/<session>/pet/…_desc-synth_pet.nii.gz`` and a sidecar each. What is there already, from
        the same model, prompt and seed, is kept. ``timing.json`` says what the sessions made by this call cost; the
        first is counted, not timed, where there are more: it warms up. A shard has a file of its own,
        ``timing_<i>of<n>.json``; a call without shard that finds all made joins them, see `_join_timings`.

    Raises
    ------
    ValueError
        No such shard.
    """
    part, parts = shard
    if not 1 <= part <= parts:
        raise ValueError(f"shard {part}/{parts}: expected i/n with 1 ≤ i ≤ n")
    model = model if isinstance(model, Model) else Model.load(model)
    seed = model.card.config.seed if seed is None else seed
    steps = sampling_steps(model.card, steps)
    prior = condition_prior(condition, people["age"].tolist(), people["sex"].tolist(), seed)
    rows = people.to_dict("records")
    for i, row in enumerate(rows):  # before any work starts
        check_person(prior.age[i], prior.sex[i], f"row {i}: {row['person']} {row['session']}")
    clock, counter = [], FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    own = list(enumerate(rows))[part - 1 :: parts]
    for i, row in tqdm(own, desc=f"{model.card.name} {condition}", unit="session", disable=not progress):
        who = row["person"], row["session"]
        age, sex = prior.age[i], prior.sex[i]
        extra = {"condition": condition, "seed": seed, "steps": steps}
        files = {t: _path(Path(out), row, t) for t in TRACERS}
        sidecars = {t: model.sidecar(t, age, sex, **extra) for t in TRACERS}
        if all(_is_done(files[t], sidecars[t]) for t in TRACERS):
            continue
        start = time.perf_counter()
        volume = mri(i)
        try:
            with nullcontext() if clock else counter:
                pet = model.synthesise(volume, age, sex, seed=derive_seed(seed, *who), steps=steps)
        except SynthesisError as error:
            raise SynthesisError(f"{' '.join(who)}: {error}") from error
        clock.append(time.perf_counter() - start)
        for channel, tracer in enumerate(TRACERS):
            model.write(files[tracer], pet[channel], sidecars[tracer])
    if clock:
        cost = {
            "sessions": len(clock),
            "seconds": round(sum(clock), 3),
            "seconds_per_session": float(np.mean(clock[1:] or clock)),
            "gflop_per_volume": counter.get_total_flops() / len(TRACERS) / 1e9,
            "device": model.device.type,
            "steps": steps,
        }
        write_json(Path(out) / ("timing.json" if parts == 1 else f"timing_{part}of{parts}.json"), cost)
    elif parts == 1 and (joined := _join_timings(Path(out), len(own))):
        write_json(Path(out) / "timing.json", joined)
    return Path(out)


def _join_timings(out: Path, sessions: int) -> dict[str, Any] | None:
    """What the parts of a list cost together; None where no full set of shards made the list, each in one go.

    Seconds are summed over the parts, whatever ran beside what; seconds a session are the mean of the parts', weighted
    by the sessions that each made. Work a volume, device and steps are those of all parts, or the parts are not joined.
    """
    found = {tuple(map(int, m.groups())): path for path in sorted(out.glob("timing_*of*.json"))
             if (m := re.fullmatch(r"timing_(\d+)of(\d+)\.json", path.name))}  # fmt: skip
    for parts in sorted({n for _, n in found}):
        # more parts than sessions leave some with nothing to make, and no file
        names = [(part, parts) for part in range(1, min(parts, sessions) + 1)]
        costs = [json.loads(found[name].read_text(encoding="utf-8")) for name in names if name in found]
        same = {tuple(cost[key] for key in ("gflop_per_volume", "device", "steps")) for cost in costs}
        counts = [cost["sessions"] for cost in costs]
        if len(costs) == len(names) and sum(counts) == sessions and len(same) == 1:
            mean = float(np.average([cost["seconds_per_session"] for cost in costs], weights=counts))
            seconds = round(sum(cost["seconds"] for cost in costs), 3)
            return costs[0] | {"sessions": sessions, "seconds": seconds, "seconds_per_session": mean, "shards": parts}
    return None


def sample_people(
    model: Model | str | Path,
    people: pd.DataFrame,
    mri: Callable[[int], np.ndarray],
    out: str | Path,
    *,
    samples: int,
    seed: int | None = None,
    steps: int | None = None,
    measure: Callable[[np.ndarray, int], dict[str, float]] | None = None,
    progress: bool = True,
) -> Path:
    """Mean and standard deviation over several samples of every session of a list, each with its own prompt.

    Parameters are those of `synthesise_people`, and

    samples : int
        At least 2. The first of a session is what `synthesise_people` makes.
    measure : callable
        A sample's PET (X, Y, Z) and its channel → values, kept as mean and standard deviation in the sidecar under
        ``measured``.

    Returns
    -------
    Path
        ``out``, with ``…_desc-synth_pet.nii.gz`` (mean) and ``…_desc-synthstd_pet.nii.gz`` a session and tracer, in
        [0, 1], and sidecars. What is there already, from the same model, prompt, seed and samples, is kept.
    """
    if samples < 2:
        raise ValueError(f"samples: {samples}; a standard deviation needs 2 or more")
    model = model if isinstance(model, Model) else Model.load(model)
    seed = model.card.config.seed if seed is None else seed
    steps = sampling_steps(model.card, steps)
    prior = condition_prior("factual", people["age"].tolist(), people["sex"].tolist(), seed)
    rows = people.to_dict("records")
    for i, row in enumerate(rows):
        check_person(prior.age[i], prior.sex[i], f"row {i}: {row['person']} {row['session']}")
    for i, row in enumerate(tqdm(rows, desc=f"{model.card.name} samples", unit="session", disable=not progress)):
        extra = {"condition": "factual", "seed": seed, "steps": steps, "samples": samples}
        files = {t: _path(Path(out), row, t) for t in TRACERS}
        sidecars = {t: model.sidecar(t, prior.age[i], prior.sex[i], **extra) for t in TRACERS}
        if all(_is_done(std_path(files[t]), sidecars[t], "measured") and files[t].is_file() for t in TRACERS):
            continue
        own = derive_seed(seed, row["person"], row["session"])
        draws, found = [], {t: [] for t in TRACERS}
        for pet in model.draws(mri(i), prior.age[i], prior.sex[i], seed=own, samples=samples, steps=steps):
            draws.append(pet)
            for channel, tracer in enumerate(TRACERS):
                found[tracer].append({} if measure is None else measure(pet[channel], channel))
        mean, std = mean_and_std(draws)
        for channel, tracer in enumerate(TRACERS):
            values = pd.DataFrame(found[tracer])
            measured = {name: [float(values[name].mean()), float(values[name].std())] for name in values}
            model.write(files[tracer], mean[channel], sidecars[tracer] | {"statistic": "mean over samples"})
            model.write(std_path(files[tracer]), std[channel], sidecars[tracer] | {"measured": measured})
    return Path(out)


def _attention_flop(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}  # torch: CUDA's alone


def _path(out: Path, row: dict[str, Any], tracer: str) -> Path:
    label = row.get(f"{tracer}_tracer")
    label = LABELS[tracer] if label is None or pd.isna(label) or label == "" else label
    return synthetic_path(out, row["person"], row["session"], label)


def _is_done(path: Path, sidecar: dict[str, Any], *more: str) -> bool:
    """Whether a volume is there with just this sidecar, whatever stands in it under the keys ``more``."""
    beside = sidecar_path(path)
    if not (path.is_file() and beside.is_file()):
        return False
    try:
        known = json.loads(beside.read_text(encoding="utf-8"))
        return {key: value for key, value in known.items() if key not in more} == sidecar
    except json.JSONDecodeError:
        return False


# ── one person ────────────────────────────────────────────────────────────────────────────────────


def synthesise_mri(
    model: Model | str | Path,
    mri: np.ndarray,
    out: str | Path,
    *,
    age: float | None = None,
    sex: str | None = None,
    prefix: str = "sub-01",
    samples: int = 1,
    seed: int | None = None,
    steps: int | None = None,
    allow_phantom_model: bool = False,
    source: dict[str, Any] | None = None,
    each: Callable[[int, np.ndarray], None] | None = None,
) -> dict[str, Path]:
    """Both PETs of one real MRI, in MNI space.

    Parameters
    ----------
    model : Model or path
    mri : ndarray (X, Y, Z)
        T1 preprocessed with the model's own settings, intensities in [0, 1].
    out : path
        Folder of the files.
    age, sex
        What the prompt says; left out where ``None``.
    prefix : str
        BIDS entities that the file names start with, see `bids_prefix`.
    samples : int
        How often to synthesise; the PETs are the mean. The first sample is that of ``samples=1``.
    seed, steps : int, optional
        The model's own by default.
    allow_phantom_model : bool
        A model that has seen phantoms only is refused otherwise. Its outputs say what made them.
    source : dict, optional
        What the MRI was made from (file name, digest, transform), for the sidecars.
    each : callable, optional
        Called with the number and the PETs (2, X, Y, Z) of every sample as it is made.

    Returns
    -------
    dict of str to Path
        ``amyloid`` and ``tau``: NIfTI, a sidecar beside each; ``mri``: the T1 on the same grid.

    Raises
    ------
    SynthesisError
        A phantom-trained model without leave, or an MRI that does not fit.
    ValueError
        An impossible age or sex.
    """
    check_person(age, sex, "prompt")
    model = model if isinstance(model, Model) else Model.load(model)
    check_phantom(model.card, allow_phantom_model)
    seed = model.card.config.seed if seed is None else seed
    steps = sampling_steps(model.card, steps)
    if samples < 1:
        raise ValueError(f"samples: {samples}; expected at least 1")

    def draws() -> Iterator[np.ndarray]:
        for i, pet in enumerate(model.draws(mri, age, sex, seed=seed, samples=samples, steps=steps)):
            if each is not None:
                each(i, pet)
            yield pet

    pet, _ = mean_and_std(draws())
    out, files = Path(out), {}
    extra = {"condition": "factual", "seed": seed, "steps": steps, "samples": samples, "source": source}
    extra |= {"units": "intensity: SUVR = low + (high − low) × intensity, the range as below"}
    for channel, tracer in enumerate(TRACERS):
        files[tracer] = out / synthetic_name(prefix, LABELS[tracer])
        sidecar = model.sidecar(tracer, age, sex, **extra)
        model.write(files[tracer], pet[channel], sidecar | {"statistic": "mean over samples"})
    files["mri"] = out / f"{prefix}_space-MNI152_desc-preproc_T1w.nii.gz"
    with atomic(files["mri"]) as temporary:
        nib.save(model.grid.image(np.asarray(mri, dtype=np.float32)), temporary)
    return files


def check_phantom(card: ModelCard, allowed: bool) -> None:
    """Refuse a model that has seen phantoms only, unless it is asked for by name."""
    if card.phantom and not allowed:
        raise SynthesisError(
            f"{card.folder}: this model has seen phantoms only; what it makes of a real MRI says nothing about the "
            "person. To try it all the same, allow it (--allow-phantom-model); every output will say so"
        )


def bids_prefix(file: str | Path) -> str:
    """Entities that outputs of a T1 start with: those of a BIDS name, else ``sub-<letters and digits of the name>``.

    >>> bids_prefix("sub-07_ses-M12_run-1_T1w.nii.gz"), bids_prefix("my scan.nii")
    ('sub-07_ses-M12_run-1', 'sub-myscan')
    """
    name = Path(file).name.removesuffix(".gz").removesuffix(".nii")
    if found := re.fullmatch(r"(sub-[a-zA-Z0-9]+(?:_[a-zA-Z]+-[a-zA-Z0-9]+)*)_T1w", name):
        return found[1]
    return f"sub-{re.sub('[^a-zA-Z0-9]', '', name.removesuffix('_T1w')) or '01'}"
