"""Jobs on a cluster: the SLURM profile is read and fits the rules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml
from conftest import ROOT

PROFILE = ROOT / "configs" / "slurm" / "config.yaml"


def test_the_slurm_profile_requests_the_resources_of_the_rules(tmp_path):
    """A dry run: the rules that the profile names exist, and trainings ask for a GPU."""
    settings = yaml.safe_load(PROFILE.read_text())
    executor = [] if find_spec("snakemake_executor_plugin_slurm") else ["--executor", "local"]
    for name in ("configs", "notebooks", "data_manifests", "resdm", "resdm_suite", "Snakefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [Path(sys.executable).parent / "snakemake", "--profile", "configs/slurm", *executor, "--config"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run([*command, "profile=phantom", "--dry-run"], cwd=tmp_path, env=environment,
                         capture_output=True, text=True)  # fmt: skip
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
