"""Estimated time of `make reproduce` on this machine: about a second of each kind of work, times its amount.

Networks are timed on random volumes of the profile's grid. Grids above `MOST_VOXELS` voxels are timed on a smaller cube
and scaled by the number of voxels. Finished work costs nothing. Tables, figures and the order of jobs are not included.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from resdm.batch import Batch, Prior
from resdm.cpu_runtime import set_up
from resdm.method import build_method
from resdm.settings import imported_method, to_dict
from resdm.timing import about
from resdm_suite.cohorts.manifest import ManifestError, read_manifest, write_manifest
from resdm_suite.cohorts.phantom import write_phantoms
from resdm_suite.cohorts.readers.bids import build_manifest
from resdm_suite.evaluation.fitting import fit
from resdm_suite.evaluation.networks import BrainAge, DSNet
from resdm_suite.preprocessing.volumes import preprocess
from resdm_suite.profiles import Config, GridConfig

MOST_VOXELS = 40**3
"""Largest grid on which networks are timed directly."""


@dataclass(frozen=True)
class Stage:
    """A stage of the run: ``units`` of ``seconds`` each, ``side_by_side`` at the same time."""

    name: str
    seconds: float
    units: int
    unit: str
    side_by_side: int

    @property
    def total(self) -> float:
        """Wall-clock seconds."""
        return self.seconds * self.units / self.side_by_side


def sessions_by_split(config: Config) -> dict[str, int]:
    """Sessions of each split: of the manifest, or the expected numbers of a phantom cohort."""
    if config.manifest.is_file():
        counts = read_manifest(config.manifest, files=False, attributes=config.attributes)["split"].value_counts()
        return {name: int(counts.get(name, 0)) for name in ("train", "validation", "test")}
    phantom, split = config.cohort.phantom, config.cohort.split
    if phantom is None:
        raise ManifestError(f"{config.manifest}: no such manifest; make one with `resdm manifest` first")
    test = split.tested
    shares = {"train": 1 - test - split.validation, "validation": split.validation, "test": test}
    return {name: round(phantom.people * (1 + phantom.repeat_visits) * share) for name, share in shares.items()}


def training_steps(config: Config, name: str, sessions: int) -> int:
    """Optimiser steps of a method's training by ``training.epochs``."""
    return config.training.epochs * max(1, sessions // (config.method(name).batch_size or config.training.batch_size))


def evaluator_steps(config: Config, target: str, sessions: int) -> int:
    """Optimiser steps of the evaluators of a target.

    Status has one evaluator per tracer and fold, by label and on phantoms also by planted status.
    Sex and age have one per tracer.
    """
    folds, settings = config.evaluation.folds, getattr(config.evaluation, target)
    kinds = 2 if config.cohort.kind == "phantom" else 1
    fits = 2 * folds * kinds if target == "status" else 2
    return fits * settings.epochs * math.ceil(sessions * (folds - 1) / folds / settings.batch_size)


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of a call, after one to warm up; a call of more than a second is not repeated."""
    for _ in range(2):
        start = time.perf_counter()
        work()
        if (seconds := time.perf_counter() - start) > 1:
            break
    return seconds


def stages(config: Config, cores: int) -> Iterator[Stage]:
    """Unfinished stages of a profile, timed on this machine, for a run of Snakemake with this number of cores."""
    sessions, run, shape = sessions_by_split(config), config.training, config.preprocess.grid.shape
    side, jobs = max(1, cores // (run.threads or cores)), 16  # jobs that neither train nor synthesise
    set_up(run)
    yield from _scan_stages(config, sum(sessions.values()), cores)
    scale = math.prod(shape) / 32**3 if math.prod(shape) > MOST_VOXELS else 1.0
    grid = GridConfig((32, 32, 32), 6.0) if scale > 1 else config.preprocess.grid
    small, timed = replace(config, preprocess=replace(config.preprocess, grid=grid)), {}
    for name, settings in config.methods.items():
        if (config.predictions(name) / "scores.csv").is_file():
            continue
        untrained = not (config.model(name) / "model.safetensors").is_file()
        jobs += 1 + untrained
        if imported_method(settings.kind, name).closed_form:  # fitted in about a second
            continue
        without = ("seed", "learning_rate", "lambda_high", "prior")  # of no effect on the time
        key = json.dumps({name: value for name, value in to_dict(settings).items() if name not in without})
        timed[key] = step, volume = timed.get(key) or method_seconds(small, name)
        each, units = scale * step, training_steps(config, name, sessions["train"])
        each, units = (run.seconds, 1) if run.budget == "equal_time" else (each, units)
        yield Stage(f"training {name}", each, untrained * units, "steps", side)
        epochs = run.epochs
        if run.budget == "equal_time":  # as many as fit
            epochs = math.ceil(run.seconds / (scale * step * training_steps(config, name, sessions["train"]) / epochs))
        volumes = untrained * math.ceil(epochs / run.validate_every) * sessions["validation"] + sessions["test"]
        conditions = set(config.attribute_conditions(name)) | (set(config.conditions) if name == "ResDM" else set())
        volumes += sessions["test"] * len(conditions)
        sampled = config.purpose == "paper" and name == config.uncertainty.method
        volumes += (sessions["test"] + sessions["validation"]) * config.uncertainty.samples * sampled
        yield Stage(f"synthesis {name}", scale * volume, volumes, "volume pairs", side)
    if config.purpose == "paper" and not (config.evaluation_folder / "fitted").is_file():
        for target in ("status", "sex", "age"):
            each, units = _evaluator_seconds(small, target), evaluator_steps(config, target, sessions["train"])
            yield Stage(f"evaluators of {target}", scale * each, units, "steps", side)
    start = [sys.executable, "-c", "import resdm_suite.apps.synthesis, resdm.training"]
    yield Stage("starts of jobs", seconds_of(lambda: subprocess.run(start, check=True)), jobs, "jobs", cores)


def _scan_stages(config: Config, sessions: int, cores: int) -> Iterator[Stage]:
    """Generation and preprocessing of phantoms, each timed on a second one, in a temporary folder."""
    if (config.volumes / "index.csv").is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        trial, phantom = replace(config, root=Path(folder)), config.cohort.phantom
        if config.manifest.is_file():
            rows = read_manifest(config.manifest, attributes=config.attributes)
        else:
            for people in (1, 2):
                trial = replace(trial, cohort=replace(config.cohort, phantom=replace(phantom, people=people)))
                start = time.perf_counter()
                write_phantoms(trial, progress=False)
            yield Stage("phantoms", time.perf_counter() - start, phantom.people, "people", cores)
            rows = build_manifest(trial.source_root, trial).manifest
        for number in (1, 2):
            write_manifest(rows.iloc[:number].assign(split="train"), trial.manifest)
            start = time.perf_counter()
            preprocess(trial, progress=False)
        yield Stage("preprocessing", time.perf_counter() - start, sessions, "sessions", cores)


def method_seconds(config: Config, name: str) -> tuple[float, float]:
    """Seconds of a training step, and of a synthesis of one person, on the device that trains."""
    settings, shape, device = config.method(name), config.preprocess.grid.shape, device_of(config)
    if hasattr(settings, "prior"):  # a small tower: an estimate downloads nothing
        settings = replace(settings, prior=replace(settings.prior, weights="none"))
    method, n = build_method(settings, shape).to(device), settings.batch_size or config.training.batch_size
    optimisers, generator = method.optimisers(), torch.Generator(device).manual_seed(0)
    pet = torch.rand(n, 2, *shape, generator=generator, device=device)
    present = torch.ones(n, 2, dtype=torch.bool, device=device)
    batch = Batch(pet[:, :1], pet, present, Prior((70.0,) * n, ("F",) * n))

    def step() -> None:
        for key, loss in method.losses(batch, generator):
            optimisers[key].zero_grad()
            loss.backward()
            optimisers[key].step()
        next(method.parameters()).sum().item()  # waits for a GPU

    @torch.no_grad()
    def synthesise() -> None:
        method.synthesise(batch.mri[:1], Prior((70.0,), ("F",)), generator).sum().item()

    training = seconds_of(step)
    method.eval()
    return training, seconds_of(synthesise)


def _evaluator_seconds(config: Config, target: str) -> float:
    """Seconds of an evaluator's training step."""
    settings, shape = replace(getattr(config.evaluation, target), epochs=1), config.preprocess.grid.shape
    how = shape, settings.width, settings.pool
    network = (BrainAge(*how, 70.0, 8.0) if target == "age" else DSNet(*how)).to(device_of(config))
    volumes, targets = torch.zeros(settings.batch_size, 1, *shape), torch.ones(settings.batch_size)
    return seconds_of(lambda: fit(network, volumes, targets, settings, 0))


def device_of(config: Config) -> str:
    """Device of the profile's training on this machine: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() and config.training.accelerator != "cpu" else "cpu"


def report(estimates: list[Stage], where: str) -> str:
    """The estimate as text: one line per stage, and the sum."""
    lines = [f"{'stage':<24}{'each':>9}{'number':>10}  {'':<13}{'total':>7}"]
    for s in [stage for stage in estimates if stage.units]:
        lines.append(f"{s.name:<24}{s.seconds:>7.3f} s{s.units:>10}  {s.unit:<13}{about(s.total):>7}")
    lines.append(f"about {about(sum(s.total for s in estimates))} {where}; tables and figures come in addition")
    return "\n".join(lines)
