"""The BIDS validator over a data set, and the files that its BIDS URIs name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

RECOMMENDED = {"SIDECAR_KEY_RECOMMENDED", "JSON_KEY_RECOMMENDED", "NO_AUTHORS", "TOO_FEW_AUTHORS", "NIFTI_UNIT"}
"""Warnings that stay: of a scanner or licence that nobody knows, of authors, who are those that run the suite, and of
the header of a native T1, which the PETs on its voxels repeat.
"""


def check_dataset(folder: Path) -> None:
    """No error and no warning but those, and no BIDS URI without its file; skips where the validator cannot run."""
    command = Path(sys.executable).with_name("bids-validator-deno")
    try:
        run = subprocess.run([command, "--format", "json", folder], capture_output=True, text=True, timeout=600)
        issues = json.loads(run.stdout)["issues"]["issues"]
    except OSError as error:
        pytest.skip(f"bids-validator-deno cannot run here: {error}")
    severe = [(one["code"], one.get("subCode"), one.get("location")) for one in issues if one["severity"] == "error"]
    assert severe == [], folder
    assert {one["code"] for one in issues} - RECOMMENDED == set(), folder
    links = json.loads((folder / "dataset_description.json").read_text()).get("DatasetLinks", {})
    for path in folder.rglob("sub-*_*.json"):
        for link, file in re.findall(r'"bids:(\w*):([^"]+)"', path.read_text()):
            assert (folder / links.get(link, ".") / file).is_file(), f"{path}: {link} {file}"
