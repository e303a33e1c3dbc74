"""The stages as one call each: cohort, training, synthesis and scores tied together, for notebooks and command line.

Stages meet on disk, below ``work/<profile>/``; each takes up what the one before has left there, and what is finished
is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from resdm.checkpoint import check_model, load_card
from resdm.cpu_runtime import set_up
from resdm.io import atomic, write_csv, write_json, write_text
from resdm.method import build_method
from resdm.residual_diffusion import ResidualDiffusion
from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.apps.model_card import write_card
from resdm_suite.apps.prediction import LABELS, Model, sample_people, synthesise_people
from resdm_suite.apps.single_scan import synthesise_scan as synthesise_scan  # a stage like the others
from resdm_suite.apps.single_scan import synthesise_scans as synthesise_scans
from resdm_suite.apps.trace import trace
from resdm_suite.cohorts.manifest import (
    PATHS,
    SPLITS,
    ManifestError,
    check_leakage,
    split_card,
    split_people,
    write_manifest,
)
from resdm_suite.cohorts.matching import Found
from resdm_suite.cohorts.readers import adni, bids, openneuro, released_layout, table
from resdm_suite.evaluation.image_quality import (
    psnr,
    read_index,
    read_volume,
    score_people,
    ssim,
    write_scores,
)
from resdm_suite.evaluation.suvr import real_regional_means, regional_means, sidecar_range, to_suvr
from resdm_suite.paths import sidecar_path, std_path, synthetic_path
from resdm_suite.preprocessing import ceiling
from resdm_suite.preprocessing.dataset import CohortDataset, collate
from resdm_suite.profiles import FEWEST, Config, load_config
from resdm_suite.reporting.provenance import provenance


def profile(config: Config | str | Path) -> Config:
    """A profile from its name or path, or as it is."""
    return config if isinstance(config, Config) else load_config(config)


def validation_score(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Whole-volume PSNR + 10 · SSIM: the released code keeps its best weights by this criterion.

    Outside ``mask`` (X, Y, Z) the synthetic volume is set to 0, as it is when it is written.
    """
    if mask is not None:
        synthetic = np.where(mask, synthetic, np.float32(0))
    return psnr(real, synthetic) + 10 * ssim(real, synthetic)


READERS = {
    "bids": bids.build_manifest,
    "adni": adni.build_manifest,
    "openneuro": openneuro.build_manifest,
    "csv": table.build_manifest,
    "released": released_layout.build_manifest,
}
"""``cohort.source`` → what reads it."""

WITH_SPLIT = ("csv", "released")
"""Sources that may come with a split of their own."""


def find_sessions(
    config: Config | str | Path, root: str | Path | None = None, source: str | None = None, *, draw: bool = False
) -> Found:
    """Read a source: its sessions, and who was left out and why. Nothing is written.

    Parameters
    ----------
    config : Config, name or path
    root : path, optional
        Where the data lie; by default as the profile says.
    source : str, optional
        How they lie, a key of `READERS`; by default as the profile says.
    draw : bool
        Leave aside the split that a source of `WITH_SPLIT` comes with.
    """
    config = profile(config)
    source = source or config.cohort.source
    options = {"draw": True} if draw and source in WITH_SPLIT else {}
    return READERS[source](_source_root(config, root), config, **options)


def _source_root(config: Config, root: str | Path | None) -> Path:
    return config.source_root if root is None else Path(root)


def make_manifest(
    config: Config | str | Path,
    root: str | Path | None = None,
    source: str | None = None,
    *,
    draw: bool = False,
    found: Found | None = None,
) -> pd.DataFrame:
    """Read a source, split its people; write ``manifest.csv``, ``flow.csv``, ``left_out.csv`` and ``notes.txt``.

    A split that the source comes with is kept, if it is complete. ``split.json`` holds the digest of the split, how it
    was drawn, and counts.

    Parameters
    ----------
    config, root, source, draw
        See `find_sessions`.
    found : Found, optional
        What `find_sessions` has found already.

    Returns
    -------
    DataFrame
        Who was left out and why: step, people, sessions.

    Raises
    ------
    ManifestError
        Scans that the manifest would name are not there, or a split has nobody; ``manifest.csv`` stays as it was.
    """
    config = profile(config)
    source = source or config.cohort.source
    found = find_sessions(config, root, source, draw=draw) if found is None else found
    write_csv(config.work / "flow.csv", found.flow)
    write_csv(config.work / "left_out.csv", found.left_out)
    write_text(config.work / "notes.txt", "".join(f"{note}\n" for note in found.notes))
    _check_there(config, _source_root(config, root), source, found.manifest)
    frame, drawn = found.manifest, (found.manifest["split"] == "").any()
    if drawn:
        frame = split_people(frame, config.cohort.split, config.seed)
    nobody = [name for name in SPLITS if name not in set(frame["split"])]
    if nobody:
        raise ManifestError(
            f"{config.manifest}: the split that came with the data leaves nobody for {', '.join(nobody)}; complete it, "
            f"or draw another: `resdm manifest {source} {config.profile} --draw-split`"
        )
    check_leakage(frame, str(config.manifest))
    card = split_card(frame, config.cohort.split if drawn else None, config.seed)
    write_json(config.work / "split.json", card)
    write_manifest(frame, config.manifest)
    return found.flow


def _check_there(config: Config, root: Path, source: str, frame: pd.DataFrame) -> None:
    """Raise `ManifestError` where scans are not on disk, and say how to get them."""
    size = 0
    if source == "openneuro":
        absent, size = openneuro.not_downloaded(frame, root)
        remedy = openneuro.remedy(config)
    else:
        absent = sorted(cell for name in PATHS for cell in frame[name] if cell and not Path(cell).is_file())
        remedy = "correct the paths, or leave those sessions out"
    if absent:
        scans = sum(int((frame[name] != "").sum()) for name in PATHS)
        said = f" of {size / 1e9:.2f} GB" if size else ""
        raise ManifestError(
            f"{root}: {len(absent)} of {scans} scans{said} are not there or not whole, the first {absent[0]}; {remedy}"
        )


def train_method(config: Config | str | Path, name: str, *, progress: bool = True) -> Path:
    """Train a method of a profile on its preprocessed cohort; goes on where it was stopped.

    Returns
    -------
    Path
        The model folder, see `resdm.training.train`, with ``provenance.json`` and the card, ``README.md``, beside.
    """
    from resdm.training import train  # here: Lightning Fabric takes two seconds that no other stage needs

    config = profile(config)
    settings = config.method(name)
    seeded = config.seeded(name)
    held = CohortDataset(seeded, "validation")  # first: a fault of the data is found before weights are loaded
    set_up(config.training)
    torch.manual_seed(seeded.seed)  # of the fresh weights
    method = build_method(settings, config.preprocess.grid.shape)
    train_set = CohortDataset(seeded, "train", augment=not method.closed_form)
    digest = json.loads((config.volumes / "cohort.json").read_text(encoding="utf-8"))["digest"]
    mask = mni_map("brain", Grid.of(config.preprocess.grid)) if config.preprocess.mask else None
    folder = train(
        method,
        config,
        name,
        train_set,
        held,
        collate=collate,
        data_digest=digest,
        score=partial(validation_score, mask=mask),
        progress=progress,
    )
    write_json(folder / "provenance.json", provenance(config, [config.volumes / "index.csv"], method=name))
    write_card(config, name)
    return folder


def synthesise_method(
    config: Config | str | Path,
    name: str,
    condition: str = "factual",
    *,
    split: str = "test",
    steps: int | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Path:
    """Synthesise the people of a split with a trained method under a condition, and score them.

    Parameters
    ----------
    config : Config, name or path
    name : str
        A method of the profile.
    condition : str
        What the prompt says, see `resdm_suite.profiles.CONDITIONS`.
    split : {"test", "validation", "train"}
    steps : int, optional
        Sampling steps; the profile's by default.
    shard : (int, int)
        Which part of the people, of how many. A part is not scored: when all are there, a call without it scores them.

    Returns
    -------
    Path
        ``predictions/<name>/<condition>`` with volumes, sidecars, ``scores.csv`` and, where the method has something
        to show of itself, ``trace.npz``.
    """
    config = profile(config)
    settings = config.method(name)
    check_model(load_card(config.model(name)), config, name)
    set_up(config.training)
    people = read_index(config, split)
    data = CohortDataset(config, split)
    model = Model.load(config.model(name))
    out = synthesise_people(
        model,
        people,
        data.mri,
        config.predictions(name, condition),
        condition=condition,
        seed=config.seeded(name).seed,
        steps=steps or getattr(settings, "sampling_steps", None),
        shard=shard,
        progress=progress,
    )
    if shard != (1, 1):
        return out
    if condition == "factual":
        write_trace(model, data, out, individual=config.individual)
    write_scores(config, name, score_people(out, people, config), condition)
    if condition == "factual" and split == "test":
        write_card(config, name)  # its metrics
    return out


def synthesise_ceiling(config: Config | str | Path, *, progress: bool = True) -> Path:
    """The best estimate of the test people's PET that their MRI and prompt allow, scored; see `preprocessing.ceiling`.

    Returns
    -------
    Path
        ``predictions/ceiling/factual`` as `synthesise_method` leaves it, and ``latent.csv``: person, session, tracer,
        positive (probability of the planted status).

    Raises
    ------
    ConfigError
        A cohort of real people.
    FileNotFoundError, ValueError
        No volumes; phantoms without their truth, or with that of others.
    """
    config = profile(config)
    truth = ceiling.read_truth(config)
    people, out, grid = read_index(config), config.predictions("ceiling"), Grid.of(config.preprocess.grid)
    population, latent = ceiling.draw_population(config.seed), []
    notice = "uses the phantom's truth: no method can"
    for row in tqdm(people.to_dict("records"), desc="ceiling", unit="session", disable=not progress):
        for tracer, (pet, positive) in ceiling.expected_pet(config, row, population, truth).items():
            label = row[f"{tracer}_tracer"] if int(row[f"present_{tracer}"]) else LABELS[tracer]
            path = synthetic_path(out, row["person"], row["session"], label)
            image = grid.image(pet)
            image.header["descrip"] = notice.encode("ascii")
            with atomic(path) as temporary:
                nib.save(image, temporary)
            write_json(sidecar_path(path), {
                "synthetic": True, "notice": notice, "cohort_notice": config.notice, "method": "ceiling",
                "tracer": tracer, "prompt": {"age": row["age"], "sex": row["sex"]}, "condition": "factual",
                "space": "MNI152", "masked": config.preprocess.mask,
                "intensity": {
                    "kind": config.preprocess.intensity, "suvr_range": list(config.preprocess.suvr_range[tracer])
                },
            })  # fmt: skip
            who = {"person": row["person"], "session": row["session"], "tracer": tracer}
            latent.append(who | {"positive": positive})
    write_csv(out / "latent.csv", pd.DataFrame(latent), "%.6g")
    write_scores(config, "ceiling", score_people(out, people, config))
    return out


def sample_method(
    config: Config | str | Path, name: str | None = None, *, samples: int | None = None, progress: bool = True
) -> Path:
    """Several samples of every validation and test person by a trained method, for `evaluation.uncertainty`.

    Parameters
    ----------
    config : Config, name or path
    name : str, optional
        A method of the profile; by default ``uncertainty.method``.
    samples : int, optional
        By default ``uncertainty.samples``.

    Returns
    -------
    Path
        ``predictions/<name>/samples``: mean and standard deviation as volumes, and ``regional.csv``: person, session,
        split, tracer, region, mean, std (over samples) and real, SUVR, of tracers that were acquired.
    """
    config = profile(config)
    name = config.uncertainty.method if name is None else name
    settings = config.method(name)
    check_model(load_card(config.model(name)), config, name)
    set_up(config.training)
    model, out = Model.load(config.model(name)), config.predictions(name, "samples")
    ranges = config.preprocess.suvr_range

    def measure(pet: np.ndarray, channel: int) -> dict[str, float]:
        tracer = TRACERS[channel]
        return regional_means(to_suvr(pet, ranges[tracer]), model.grid, tracer)

    rows: list[dict[str, Any]] = []
    for split in ("validation", "test"):
        people = read_index(config, split)
        sample_people(
            model,
            people,
            CohortDataset(config, split).mri,
            out,
            samples=samples or config.uncertainty.samples,
            seed=config.seeded(name).seed,
            steps=getattr(settings, "sampling_steps", None),
            measure=measure,
            progress=progress,
        )
        for row in people.to_dict("records"):
            rows += _regional_rows(config, row, out, model)
    write_csv(out / "regional.csv", pd.DataFrame(rows), "%.9g")
    return out


def _regional_rows(config: Config, row: dict[str, Any], out: Path, model: Model) -> list[dict[str, Any]]:
    """Rows of ``regional.csv`` of one session."""
    rows = []
    for tracer in TRACERS:
        label = row[f"{tracer}_tracer"]
        if not int(row[f"present_{tracer}"]):
            continue
        path = std_path(synthetic_path(out, row["person"], row["session"], label))
        measured = json.loads(sidecar_path(path).read_text())["measured"]
        source = config.volumes / row[tracer]
        suvr = to_suvr(read_volume(source, model.grid), sidecar_range(source))
        real = real_regional_means(source, suvr, model.grid, tracer)
        who = {"person": row["person"], "session": row["session"], "split": row["split"], "tracer": tracer}
        rows += [who | {"region": r, "mean": m, "std": s, "real": real[r]} for r, (m, s) in measured.items()]
    return rows


def synthesise_conditions(
    config: Config | str | Path, name: str, conditions: Iterable[str], **options: Any
) -> pd.DataFrame:
    """`synthesise_method` under several conditions; returns their scores, with a first column ``condition``."""
    frames = []
    for condition in conditions:
        frame = pd.read_csv(synthesise_method(config, name, condition, **options) / "scores.csv")
        frame.insert(0, "condition", condition)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def write_trace(model: Model, data: CohortDataset, out: Path, *, individual: bool = True) -> None:
    """``trace.npz``: how the method comes to its result, for Figure 1.

    Of the first person with both tracers; or, where single people may not be shown, the means over the first `_TRACED`
    such people and their number (``people``), if there are `FEWEST` of them; no prompt then.
    """
    (out / "trace.npz").unlink(missing_ok=True)
    if not isinstance(model.method, ResidualDiffusion):
        return
    sums: dict[str, Any] = {}
    seen: set[str] = set()
    for number, person in enumerate(data.index["person"]):
        if person in seen or len(seen) == (1 if individual else _TRACED):
            continue
        batch = collate([data[number]])
        if not batch.present.all():
            continue
        generator = torch.Generator(model.device).manual_seed(model.card.config.seed)
        tensors = trace(model.method, batch.to(model.device), generator)
        seen.add(person)
        for key, value in tensors.items():
            mean = key in sums and np.issubdtype(value.dtype, np.floating)
            sums[key] = sums[key] + value if mean else sums.get(key, value)
    if len(seen) >= (1 if individual else FEWEST):
        if not individual:
            sums = {k: v / len(seen) if np.issubdtype(v.dtype, np.floating) else v for k, v in sums.items()}
            del sums["prompts"]
            sums["people"] = np.array(len(seen))
        sums = {name: _on_grid(array, model.grid.shape) if array.ndim >= 3 else array for name, array in sums.items()}
        with atomic(out / "trace.npz") as temporary:
            np.savez_compressed(temporary, **sums)


def _on_grid(volumes: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Volumes (…, x, y, z) of coarser voxels on a grid of this shape, by nearest neighbour."""
    for axis, n in zip((-3, -2, -1), shape, strict=True):
        m = volumes.shape[axis]
        volumes = volumes if m == n else volumes.take(np.arange(n) * m // n, axis)
    return volumes


_TRACED = 20  # people that a mean trace is of, at most: each costs a synthesis
