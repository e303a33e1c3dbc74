"""Provenance: stable, portable, and correct for the checkout."""

from __future__ import annotations

import json
import platform
import sys

import numpy as np
import pytest
from conftest import run
from stored_cohort import make_config

from resdm.io import sha256
from resdm_suite.reporting.provenance import git_state, provenance, versions


def git(folder, *arguments: str) -> str:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return run("git", *options, *arguments, cwd=folder).stdout.strip()


def test_entries_are_stable_and_portable(tmp_path):
    config = make_config(tmp_path)
    inside, outside = tmp_path / "work" / "b.csv", tmp_path.parent / f"{tmp_path.name}-a.csv"
    inside.parent.mkdir()
    inside.write_text("1\n")
    outside.write_text("2\n")
    made = provenance(config, [inside, outside, inside], device="cuda: H100", person="by rule")
    assert made == provenance(config, [outside, inside], device="cuda: H100", person="by rule")
    text = json.dumps(made)
    assert str(tmp_path.parent) not in text  # no path of this machine
    assert made["inputs"] == {outside.name: sha256(outside), "work/b.csv": sha256(inside)}
    elsewhere = tmp_path.parent / f"{tmp_path.name}-disk"
    (elsewhere / "A").mkdir(parents=True)
    (elsewhere / "A" / "c.csv").touch()
    (tmp_path / "work" / "tiny").symlink_to(elsewhere, target_is_directory=True)  # a folder on another disk
    assert list(provenance(config, [tmp_path / "work/tiny/A/c.csv"])["inputs"]) == ["work/tiny/A/c.csv"]
    assert made["config"] == config.digest()
    assert made["settings"] == {part: config.digest(part) for part in ("cohort", "preprocess", "privacy", "seed")}
    assert made["notice"] == "phantom data: not a reproduction of the paper's numbers"
    assert (made["seed"], made["device"], made["profile"]) == (0, "cuda: H100", "tiny")
    assert list(made)[-1] == "person"
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        provenance(config, [tmp_path / "gone.csv"])


def test_versions_are_those_installed():
    found = versions()
    assert found["numpy"] == np.__version__
    assert found["python"] == sys.version.split()[0]


PROCESSOR = """
import json, sys
import resdm_suite.reporting.provenance as p
before = p.processor()
import torch
assert before | {"torch": torch.backends.cpu.get_cpu_capability()} == p.processor()
print(json.dumps([before, p.processor()]))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="core types of other processors have other names")
def test_the_cpu_capability_is_recorded_identically_in_every_run():
    def recorded(**environment: str) -> list[dict[str, str]]:
        return json.loads(run("python", "-c", PROCESSOR, **environment).stdout)

    first = recorded()
    assert first == recorded()
    assert first[0].keys() <= {"blas"}  # torch is not loaded for it
    other = recorded(OPENBLAS_CORETYPE="Nehalem", ATEN_CPU_CAPABILITY="default")
    assert other[1]["torch"] == "DEFAULT"
    if "blas" in first[0]:  # NumPy may have another library than OpenBLAS
        assert other[0]["blas"] == "Nehalem"


def test_git_state(tmp_path):
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {"commit": None, "dirty": None}  # no commit yet
    (tmp_path / "code.py").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": head, "dirty": False}
    for folder in ("figures", "benchmarks/results"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "new.svg").write_text("drawn")
    assert git_state(tmp_path) == {"commit": head, "dirty": False}  # drawing is not a change of code
    (tmp_path / "code.py").write_text("b")
    assert git_state(tmp_path) == {"commit": head, "dirty": True}


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state() == {"commit": None, "dirty": None}
