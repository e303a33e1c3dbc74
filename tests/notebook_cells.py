"""Run the cells of a notebook in this process, on a profile that a test made."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import nbformat
from conftest import ROOT

from resdm_suite.profiles import Config

PICTURES = ("04-06", "04-10", "04-12", "04-13")
"""Cells of notebook 04 without which Table 2 is the same."""


def run_cells(name: str, config: Config, *cells: str, without: tuple[str, ...] = (), **given: Any) -> dict[str, Any]:
    """Execute the code cells with some ids, by default all, and return their variables; ``given`` are set before."""
    (path,) = (ROOT / "notebooks").glob(f"{name}*.ipynb")
    variables = {"__name__": name, "config": config, **given}
    with patch("resdm_suite.profiles.load_config", lambda profile: config):
        for cell in nbformat.read(path, 4).cells:
            chosen = cell.id in cells if cells else "parameters" not in cell.metadata.get("tags", [])
            if cell.cell_type == "code" and chosen and cell.id not in without:
                exec(compile(cell.source, f"{path.stem}/{cell.id}", "exec"), variables)
    return variables
