"""An archive for reading: its notebooks run where neither torch nor SimpleITK is, and make the same tables."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

from conftest import ROOT, tiny_resdm
from notebook_cells import run_cells
from read_archive import ABSENT
from stored_cohort import make_cohort
from stored_readings import make_status, store_readings

from resdm.baselines.linear import LinearConfig
from resdm_suite.apps.archive import READABLE, archive
from resdm_suite.evaluation.image_quality import score_method
from resdm_suite.reporting.provenance import provenance, write_sidecar


def test_notebooks_read_an_archive_without_torch(tmp_path):
    config, index = make_cohort(tmp_path, {"ResDM": 0.5, "linear": 1.0}, people=12)
    config = dataclasses.replace(
        config, methods={"ResDM": tiny_resdm(kind="residual_diffusion"), "linear": LinearConfig()}
    )
    for name in config.methods:
        score_method(config, name)
    status, folds = make_status({"ResDM": 2.0, "mri": 1.0, "linear": 4.0, "real": 3.0}, people=12)
    store_readings(config, status=status.merge(index[["person", "session"]]), status_folds=folds)
    run_cells("13", config)
    run_cells("20", config, without=("20-10",))
    write_sidecar(config.figures / "table1", provenance(config, [config.volumes / "index.csv"]))
    for name in ("notebooks", "data_manifests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(archive(config, for_reading=True)) as crate:
        crate.extractall(folder)
    made = folder / "figures" / "tiny"
    tables = {f"{name}{suffix}" for name in ("suvr_fidelity", "subgroups") for suffix in (".csv", ".md", ".tex")}
    for name in tables:
        (made / name).unlink()
    command = [sys.executable, ROOT / "tests" / "read_archive.py", "tiny", "06", "13", "20"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    done = re.findall(r"(?m)^(\d\d)_\w+$", run.stdout)
    assert done == list(READABLE)
    assert [name for name in tables if (made / name).read_bytes() != (config.figures / name).read_bytes()] == []
    assert "| ResDM |" in (made / "table4.md").read_text(encoding="utf-8")


def test_the_environment_for_reading_is_a_part_of_the_whole_one():
    text = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8")
    names = [line for line in text.splitlines() if line and line[0].isalnum()]
    pinned = re.findall(r"(?m)^([A-Za-z0-9_-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert {name.lower() for name in names} <= {name.lower() for name in pinned}
    assert not {*names} & {name.replace("_", "-") for name in ABSENT}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert {*names} - needed == {"ipykernel", "jupyterlab", "papermill"}
