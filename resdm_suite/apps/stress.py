"""Synthesis from scans that differ from the training data: planted shifts of known strength, on phantoms.

Shifts are applied to the preprocessed T1 of test people, so they act on the network alone: registration and bias-field
removal, which would weaken some of them, are not repeated. Shifts of the real PET show how the scores change when
the scanner or the tracer of the reference differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm.auto import tqdm

from resdm.settings import TRACERS, derive_seed
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.apps.prediction import Model, sampling_steps
from resdm_suite.evaluation.image_quality import psnr, read_index, read_volume
from resdm_suite.evaluation.stored import read_sidecar
from resdm_suite.evaluation.suvr import regional_means, sidecar_range, to_suvr
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.preprocessing.input_check import InputCheck
from resdm_suite.profiles import Config

Volume = np.ndarray  # (X, Y, Z) in [0, 1]


@dataclass(frozen=True)
class Shift:
    """A planted change.

    Parameters
    ----------
    unit : str
        Of the strengths.
    strengths : tuple of float
        From weak to strong.
    change : callable
        Volume (X, Y, Z) in [0, 1], strength, grid, generator → volume; not yet clipped.
    scan : {"t1w", "amyloid", "tau"}
        What is changed: the input, or the real PET.
    """

    unit: str
    strengths: tuple[float, ...]
    change: Callable[[Volume, float, Grid, np.random.Generator], Volume]
    scan: str = "t1w"


def _blurred(volume: Volume, fwhm_mm: float, grid: Grid, _: np.random.Generator) -> Volume:
    return ndimage.gaussian_filter(volume, fwhm_mm / np.sqrt(8 * np.log(2)) / grid.voxel_mm)


def _noisy(volume: Volume, sd: float, grid: Grid, generator: np.random.Generator) -> Volume:
    """Rician, as in magnitude images."""
    real, imaginary = sd * generator.normal(size=(2, *volume.shape))
    return np.hypot(volume + real, imaginary) * (volume > 0)


def _biased(volume: Volume, change: float, grid: Grid, _: np.random.Generator) -> Volume:
    """Brighter in front by ``change``, darker behind."""
    place = np.linspace(-1, 1, volume.shape[1])[None, :, None]
    return volume * (1 + change * place)


def _with_skull(volume: Volume, brightness: float, grid: Grid, _: np.random.Generator) -> Volume:
    """A rim around the brain that skull stripping should have removed."""
    brain = mni_map("brain", grid)
    rim = ndimage.binary_dilation(brain, iterations=max(1, round(6 / grid.voxel_mm))) & ~brain
    return np.where(rim, brightness, volume)


def _cropped(volume: Volume, height_mm: float, grid: Grid, _: np.random.Generator) -> Volume:
    """Nothing in the lowest part of the brain."""
    z = grid.mm()[2]
    return np.where(z < z[mni_map("brain", grid)].min() + height_mm, 0, volume)


def _with_lesion(volume: Volume, radius_mm: float, grid: Grid, generator: np.random.Generator) -> Volume:
    """A dark sphere, such as an old infarct, around a random voxel of white matter."""
    centre = generator.choice(np.argwhere(mni_map("wm", grid) > 0.5))
    distance = grid.voxel_mm * np.linalg.norm(np.indices(volume.shape).T - centre, axis=-1).T
    return np.where(distance < radius_mm, 0.15, volume)


SHIFTS = {
    "resolution": Shift("FWHM (mm)", (4, 8, 12, 16), _blurred),
    "noise": Shift("SD (of the T1's range)", (0.03, 0.06, 0.12, 0.24), _noisy),
    "contrast": Shift("exponent", (0.7, 1.4, 2.0, 3.0), lambda volume, exponent, *_: volume**exponent),
    "bias field": Shift("change at the edges", (0.1, 0.2, 0.4, 0.8), _biased),
    "skull left in": Shift("brightness", (0.25, 0.5, 1.0), _with_skull),
    "motion ghosts": Shift(  # a copy of the head, displaced by half the field of view along the phase encoding
        "share",
        (0.05, 0.1, 0.2, 0.4),
        lambda volume, share, *_: (1 - share) * volume + share * np.roll(volume, volume.shape[1] // 2, axis=1),
    ),
    "cropped field": Shift("missing (mm)", (12, 24, 36, 48), _cropped),
    "lesion": Shift("radius (mm)", (8, 16, 24, 32), _with_lesion),
    "left and right exchanged": Shift("", (1,), lambda volume, *_: volume[::-1]),
    "PET resolution": Shift("FWHM (mm)", (4, 8, 12), _blurred, "amyloid"),
    "another tau tracer": Shift("factor of SUVR", (0.7, 1.3, 1.6), lambda volume, factor, *_: volume * factor, "tau"),
}
"""Name → shift. Strengths run from hardly visible to obvious."""


def stress(config: Config, methods: Iterable[str], *, progress: bool = True) -> pd.DataFrame:
    """Synthesise and measure every test person under every shift.

    Parameters
    ----------
    config : Config
        Its models and volumes are read.
    methods : iterable of str
        Trained methods.
    progress : bool
        Show a bar.

    Returns
    -------
    DataFrame
        shift (empty: none), strength, method, person, session, tracer, psnr (dB, inside the brain), real and synthetic
        (SUVR of the cortical summary), label (status, NaN where unknown), refused (by the method's input check; NaN
        without one).
    """
    index, data, rows = read_index(config), CohortDataset(config, "test"), []
    for method in methods:
        model, check = Model.of_profile(config, method), InputCheck.read(config.model(method))
        sessions = tqdm(index.to_dict("records"), desc=f"stress {method}", unit="session", disable=not progress)
        for i, row in enumerate(sessions):
            mri, more = data.mri(i), data[i]["attributes"]
            rows += [{"method": method} | one for one in _session(config, model, check, row, mri, more)]
    return pd.DataFrame(rows)


def planted_faults(config: Config, check: InputCheck | None) -> pd.DataFrame:
    """The result of an input check for the T1s of test people: as they are, and with a gross fault.

    Faults are the shifts of the T1, each at its greatest strength. One session per person.

    Returns
    -------
    DataFrame
        fault (``none``: as it is), person, score (of the most deviating measure), worst (its name), refused. No row
        without a check.
    """
    index, data, rows = read_index(config), CohortDataset(config, "test"), []
    grid, faults = Grid.of(config.preprocess.grid), {name: one for name, one in SHIFTS.items() if one.scan == "t1w"}
    for name, shift in {"none": None, **faults}.items():
        for i in np.flatnonzero(~index["person"].duplicated()) if check is not None else ():
            row, t1 = index.iloc[i], data.mri(i)
            fit = row["t1_correlation"] - _fit(t1, grid)
            if shift is not None:
                generator = np.random.default_rng(derive_seed(config.seed, "fault", name, row["person"]))
                t1 = _changed(shift, t1, shift.strengths[-1], grid, generator)
            transform = read_sidecar(config.volumes / row["t1w"])["transform"]
            scores = check.scores(check.measure(t1, transform, fit + _fit(t1, grid)))
            worst = max(scores, key=scores.get)
            found = {"score": scores[worst], "worst": worst, "refused": scores[worst] > check.threshold}
            rows.append({"fault": name, "person": row["person"]} | found)
    return pd.DataFrame(rows, columns=["fault", "person", "score", "worst", "refused"])


def _session(
    config: Config, model: Model, check: InputCheck | None, row: dict[str, Any], mri: Volume, more: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The rows of one session: without a shift, then of each shift and strength."""
    grid, who = model.grid, {"person": row["person"], "session": row["session"]}
    fit = row["t1_correlation"] - _fit(mri, grid)  # of the scan, beyond that of the preprocessed image
    seed, t1_path = derive_seed(model.card.config.seed, *who.values()), config.volumes / row["t1w"]
    transform = read_sidecar(t1_path)["transform"]
    real = {
        tracer: read_volume(config.volumes / row[tracer], grid) for tracer in TRACERS if int(row[f"present_{tracer}"])
    }

    def synthesised(t1: Volume) -> tuple[dict[str, Volume], float]:
        pets = model.synthesise(t1, row["age"], row["sex"], seed=seed, steps=sampling_steps(model.card), more=more)
        refused = np.nan
        if check is not None:
            refused = float(bool(check.fault(check.measure(t1, transform, fit + _fit(t1, grid)))))
        return dict(zip(TRACERS, pets, strict=True)), refused

    def measured(head: dict[str, Any], one: dict[str, Volume], other: dict[str, Volume]) -> Iterator[dict[str, Any]]:
        for tracer in one:
            scale = sidecar_range(config.volumes / row[tracer])
            means = [regional_means(to_suvr(pet[tracer], scale), grid, tracer)["summary"] for pet in (one, other)]
            brain = mni_map("brain", grid)
            quality = psnr(one[tracer][brain], other[tracer][brain])
            values = {"psnr": quality, "real": means[0], "synthetic": means[1], "label": row[f"{tracer}_status"]}
            yield {**head, **who, "tracer": tracer, **values}

    synthetic, refused = synthesised(mri)
    yield from measured({"shift": "", "strength": 0.0, "refused": refused}, real, synthetic)
    for name, shift in SHIFTS.items():
        generator = np.random.default_rng(derive_seed(config.seed, "stress", name, *who.values()))
        for strength in shift.strengths:
            if shift.scan == "t1w":
                pets, found = synthesised(_changed(shift, mri, strength, grid, generator))
                yield from measured({"shift": name, "strength": strength, "refused": found}, real, pets)
            elif shift.scan in real:
                pet = {shift.scan: _changed(shift, real[shift.scan], strength, grid, generator)}
                yield from measured({"shift": name, "strength": strength, "refused": refused}, pet, synthetic)


def _fit(t1: Volume, grid: Grid) -> float:
    """Correlation with the MNI152 T1 inside the brain."""
    brain = mni_map("brain", grid)
    return float(np.corrcoef(t1[brain], mni_map("t1", grid)[brain])[0, 1])


def _changed(shift: Shift, volume: Volume, strength: float, grid: Grid, generator: np.random.Generator) -> Volume:
    return np.clip(shift.change(volume, strength, grid, generator), 0, 1).astype(np.float32)
