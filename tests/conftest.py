"""What several test files share."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from browser import page as page  # a fixture
from hypothesis import settings
from stored_cohort import sessions

from resdm.baselines.regression import RegressionConfig
from resdm.batch import Batch, Prior
from resdm.io import sha256
from resdm.method import Method
from resdm.prior import PriorConfig, TowerConfig
from resdm.residual_diffusion import ResidualDiffusionConfig
from resdm.unet import NetworkConfig
from resdm_suite.apps import cli
from resdm_suite.cohorts.manifest import PATHS, write_manifest

settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")  # the same examples on every machine
torch.set_num_threads(1)  # two test workers on two cores; and sums in one order

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # its scripts are imported by name

LONGEST = ("test_reproduce", "test_volumes", "test_training", "test_sources_end_to_end")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: at the end, one of two workers would wait for the other."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def beside(place: str) -> Path:
    """Real data that lie beside the repository in development, and are not part of it."""
    path = ROOT.parent / "shared" / "data" / place
    if not path.exists():
        pytest.skip(f"real data do not ship with the project: {place}")
    return path


@pytest.fixture(scope="session")
def real_t1() -> Path:
    """A person's T1."""
    return beside("t1/single_subject_T1w.nii.gz")


@pytest.fixture(scope="session")
def real_dlbs() -> Path:
    """Metadata of OpenNeuro ds004856."""
    return beside("dlbs")


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory) -> Path:
    """Configurations, notebooks and the preprocessed cohort of the smoke profile; who writes there, copies it."""
    folder = clone(tmp_path_factory.mktemp("smoke"), ("configs", "notebooks"))
    for command in ("phantom", "manifest bids", "preprocess"):
        assert cli.main([*command.split(), str(folder / "configs" / "smoke.yaml")]) == 0
    return folder


def run(*command, cwd: Path = ROOT, code: int | None = 0, text: str = "", **environment: str):
    """A program of this environment or the system, with this checkout's packages; unless ``code`` is None, checked."""
    path = {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]), "PYTHONPATH": str(ROOT)}
    options = {"input": text, "env": os.environ | path | environment, "capture_output": True, "errors": "replace"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, timeout=2400, **options)
    assert code is None or done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def git_files(folder: Path = ROOT, *options: str) -> list[str]:
    """Names of the files that git tracks; skips outside a checkout."""
    done = run("git", "ls-files", "-z", *options, cwd=folder, code=None)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (folder / name).is_file()]


def clone(folder: Path, names=("configs", "notebooks", "data_manifests", "resdm", "resdm_suite")) -> Path:
    """A copy of the parts of this checkout with which the workflow runs."""
    for name in names:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of all files below a folder, by their place in it."""
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob(pattern)) if path.is_file()}


def changed(settings, **values):
    """Settings with other values; a mapping changes values of a part: ``changed(config, cohort={"kind": "adni"})``."""
    for name, value in values.items():
        if isinstance(value, dict) and dataclasses.is_dataclass(part := getattr(settings, name)):
            values[name] = changed(part, **value)
    return dataclasses.replace(settings, **values)


def times(*folders: Path, pattern: str = "*") -> dict[Path, int]:
    """When the files below folders were written, in ns."""
    paths = (path for folder in folders for path in folder.rglob(pattern))
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def flow(steps: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """People and sessions left after each step of a selection."""
    return {step: (people, sessions) for step, people, sessions in steps.itertuples(index=False)}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def table(tmp_path):
    """A manifest on disk with its scans; ``table(change)`` rewrites one cell, ``table(text=...)`` the whole text."""
    folder = tmp_path / "cohort"
    frame = sessions(6).assign(split="train")
    for column in PATHS:
        frame[column] = [str(folder / cell.lstrip("/")) if cell else "" for cell in frame[column]]
        for cell in frame[column]:
            if cell:
                Path(cell).parent.mkdir(parents=True, exist_ok=True)
                Path(cell).touch()
    path = write_manifest(frame, folder / "manifest.csv")

    def make(row=None, column=None, value=None, *, text=None):
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        elif row is not None:
            raw = pd.read_csv(path, dtype=str, keep_default_na=False)
            raw.loc[row, column] = value
            raw.to_csv(path, index=False)
        return path

    return make


def tiny_prior(**changes) -> PriorConfig:
    """A text tower of a few thousand weights."""
    return PriorConfig(
        weights="none", tower=TowerConfig(width=16, heads=2, layers=2, embed_dim=16, pretraining_steps=0), **changes
    )


def tiny_network(**changes) -> NetworkConfig:
    """A U-Net of two levels."""
    return NetworkConfig(
        **{"width": 8, "multipliers": (1, 2), "attention_levels": (1,), "cross_heads": 2, "norm_groups": 4} | changes
    )


def tiny_resdm(**changes) -> ResidualDiffusionConfig:
    """ResDM that makes a step in milliseconds."""
    return ResidualDiffusionConfig(**{"network": tiny_network(), "prior": tiny_prior(), "ema": 0.9} | changes)


def tiny_regression(**changes) -> RegressionConfig:
    """Its control."""
    return RegressionConfig(**{"network": tiny_network(), "prior": tiny_prior(), "ema": 0.9} | changes)


def random_batch(n: int = 2, size: int | tuple[int, int, int] = 8, seed: int = 0) -> Batch:
    """People with random volumes in [0, 1] and both tracers."""
    shape = (size,) * 3 if isinstance(size, int) else size
    g = torch.Generator().manual_seed(seed)
    ages = tuple(round(60 + 30 * a, 1) for a in torch.rand(n, generator=g).tolist())
    return Batch(
        torch.rand((n, 1, *shape), generator=g),
        torch.rand((n, 2, *shape), generator=g),
        torch.ones((n, 2), dtype=torch.bool),
        Prior(ages, tuple("FM"[i % 2] for i in range(n))),
    )


def step(method: Method, batch: Batch, seed: int = 0) -> torch.Tensor:
    """The one loss of a method without a second network."""
    ((name, loss),) = method.losses(batch, torch.Generator().manual_seed(seed))
    assert name == "model"
    return loss
