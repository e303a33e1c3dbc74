"""Jobs on a cluster: the SLURM profile is read, and a rule runs through a submit script."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

BIN = Path(sys.executable).parent
PROFILE = ROOT / "configs" / "slurm" / "config.yaml"


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]), "PYTHONPATH": str(folder)}
    command = [BIN / "snakemake", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def clone(tmp_path):
    """The files of a clone that the workflow needs."""
    for name in ("configs", "notebooks", "data_manifests", "resdm", "resdm_suite"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", tmp_path)
    return tmp_path


def test_the_slurm_profile_requests_the_resources_of_the_rules(clone):
    """A dry run: the rules that the profile names exist, and trainings ask for a GPU."""
    settings = yaml.safe_load(PROFILE.read_text())
    executor = [] if find_spec("snakemake_executor_plugin_slurm") else ["--executor", "local"]
    run = snakemake(clone, "--profile", "configs/slurm", *executor, "--config", "profile=phantom", "--dry-run")
    assert run.returncode == 0, run.stderr[-2000:]
    blocks = re.split(r"^(?=rule )", run.stdout, flags=re.MULTILINE)
    for rule, wanted in settings["set-resources"].items():
        found = [block for block in blocks if block.startswith(f"rule {rule}:")]
        assert found, rule
        for block in found:
            resources = next(line for line in block.splitlines() if line.strip().startswith("resources:"))
            for key, value in (settings["default-resources"] | wanted).items():
                assert f"{key}={value}" in resources.replace(" ", "").split(":", 1)[1].split(","), (rule, key)
    (table,) = [block for block in blocks if "rule table2:" in block]
    assert "gpu" not in table
    assert f"runtime={settings['default-resources']['runtime']}" in table


@pytest.mark.skipif(find_spec("snakemake_executor_plugin_cluster_generic") is None, reason="needs the extra 'cluster'")
def test_a_rule_runs_through_a_submit_script(clone):
    """The script runs the manifest's job, and the output file exists afterwards."""
    bids = clone / "work" / "smoke" / "bids"
    made = subprocess.run(
        [sys.executable, "-m", "resdm_suite.apps.cli", "phantom", "smoke", "--quiet", "--jobs", "2"],
        cwd=clone, env=os.environ | {"PYTHONPATH": str(clone)}, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (bids / "participants.tsv").is_file()
    submit = clone / "submit.sh"
    submit.write_text('#!/bin/sh\necho "$1" >> submitted.txt\nsh "$1" > job.log 2>&1\necho 1\n')
    submit.chmod(0o755)
    run = snakemake(
        clone, "--executor", "cluster-generic", "--cluster-generic-submit-cmd", "./submit.sh", "--jobs", "1", "--cores",
        "1", "--config", "profile=smoke", "--latency-wait", "10", "--rerun-triggers", "mtime", "--",
        "work/smoke/manifest.csv",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert len((clone / "submitted.txt").read_text().splitlines()) == 1
    rows = (clone / "work" / "smoke" / "manifest.csv").read_text().splitlines()
    assert len(rows) > 20
