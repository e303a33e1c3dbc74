"""An archive for reading: its notebooks run where neither torch nor SimpleITK is, and make the same tables."""

from __future__ import annotations

import re
import tomllib

from conftest import ROOT
from read_archive import ABSENT


def test_the_environment_for_reading_is_a_part_of_the_whole_one():
    text = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8")
    names = [line for line in text.splitlines() if line and line[0].isalnum()]
    pinned = re.findall(r"(?m)^([A-Za-z0-9_-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert {name.lower() for name in names} <= {name.lower() for name in pinned}
    assert not {*names} & {name.replace("_", "-") for name in ABSENT}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert {*names} - needed == {"ipykernel", "jupyterlab", "papermill"}
