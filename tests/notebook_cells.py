"""Run cells of a notebook in this process, on a profile or on data that a test made."""

from __future__ import annotations

import ast
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import numpy as np
from conftest import ROOT
from matplotlib.figure import Figure
from matplotlib.text import Text

from resdm_suite.profiles import Config
from resdm_suite.reporting.style import style

PICTURES = ("04-06", "04-10", "04-19", "04-13")
"""Cells of notebook 04 without which Table 2 is the same."""


def read_code(notebook: str) -> list[nbformat.NotebookNode]:
    """Code cells of the notebook whose file name begins like this."""
    (path,) = (ROOT / "notebooks").glob(f"{notebook}*.ipynb")
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def run_cells(name: str, config: Config, *cells: str, without: tuple[str, ...] = (), **given: Any) -> dict[str, Any]:
    """Execute the code cells with some ids, by default all, and return their variables; ``given`` are set before."""
    variables = {"__name__": name, "config": config, **given}
    with patch("resdm_suite.profiles.load_config", lambda profile: config):
        for cell in read_code(name):
            chosen = cell.id in cells if cells else "parameters" not in cell.metadata.get("tags", [])
            if chosen and cell.id not in without:
                exec(compile(cell.source, f"{name}/{cell.id}", "exec"), variables)
    return variables


def draw(notebook: str, **names: Any) -> Figure:
    """Run the imports of a notebook and its cell tagged ``figure`` with these names defined; return the figure."""
    cells = read_code(notebook)
    nodes = [node for cell in cells for node in ast.parse(cell.source).body]
    imports = ast.Module([node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)], [])
    (figure,) = [cell.source for cell in cells if "figure" in cell.metadata.get("tags", [])]
    variables: dict[str, Any] = {}
    with style():
        exec(compile(imports, notebook, "exec"), variables)
        variables |= names
        exec(figure, variables)
    return variables["figure"]


def check_latex(text: str) -> None:
    """LaTeX that compiles, as far as a script can tell, with one block in each float and none wider than the page."""
    assert text.isascii()
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text):
        opened.append(name) if kind == "begin" else None
        assert kind == "begin" or opened.pop() == name
    assert opened == []
    braces = re.findall(r"(?<!\\)[{}]", text.replace("\\\\", ""))
    depths = np.cumsum([1 if brace == "{" else -1 for brace in braces])
    assert depths.min() >= 0
    assert depths[-1] == 0
    blocks = re.findall(r"\\begin\{(tabular|longtable)\}\{([^\n]*)\}\n(.*?)\\end\{\1\}", text, flags=re.DOTALL)
    for kind, preamble, body in blocks:
        widths = [float(width) for width in re.findall(r"p\{\\dimexpr ([\d.]+)\\linewidth", preamble)]
        columns = len(preamble) if kind == "tabular" else len(widths)
        assert round(sum(widths), 6) <= 1
        rows = [line.removesuffix("\\\\") for line in body.splitlines() if line.endswith("\\\\")]
        assert len(rows) > 1
        for row in rows:
            spanned = sum(int(number) - 1 for number in re.findall(r"\\multicolumn\{(\d+)\}", row))
            assert len(re.findall(r"(?<!\\)&", row)) + 1 + spanned == columns, row
            assert not row.lstrip().startswith("[")  # \\ would take it for its argument
            assert not re.search(r"(?<!\\)[%#_~]|(?<![$\\])\^", row.replace("$^", "")), row
            assert len(re.findall(r"(?<!\\)\$", row)) % 2 == 0, row
    floats = text.count("\\begin{table*}")
    assert floats == text.count("\\begin{adjustbox}{max width=\\linewidth}\n\\begin{tabular}")
    assert len(blocks) == floats or floats == 0


def pdf_text(path: Path) -> str:
    """The letters that a PDF of matplotlib shows as text (codes of two bytes are Unicode), a line each."""
    lines = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", path.read_bytes(), flags=re.DOTALL):
        with suppress(zlib.error):
            for block in re.findall(rb"\nBT\n(.*?)\nET\n", zlib.decompress(stream), flags=re.DOTALL):
                parts = re.findall(rb"\(((?:\\.|[^\\)])*)\)", block, flags=re.DOTALL)
                lines.append(re.sub(rb"\\(.)", rb"\1", b"".join(parts), flags=re.DOTALL).decode("utf-16-be", "replace"))
    return "\n".join(lines)


def texts(figure: Figure) -> list[str]:
    """All texts of a figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip()]


def check_texts(figure: Figure) -> None:
    """All texts lie on the page and none overlaps another."""
    renderer = figure.canvas.get_renderer()
    with style():
        figure.canvas.draw()
    written = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    undrawn = _undrawn(figure)
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in written if text not in undrawn]
    assert len(boxes) > 10
    for i, (one, a) in enumerate(boxes):
        assert a.x0 >= -1, one
        assert a.x1 <= figure.bbox.width + 1, one
        assert a.y0 >= -1, one
        for other, b in boxes[i + 1 :]:
            x, y = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert x <= 1 or y <= 1, (one, other)


def _undrawn(figure: Figure) -> set[Text]:
    """Labels of ticks beyond an axis' limits, or of an axis that is off: they exist, but are not drawn."""
    texts = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        texts |= set() if axis.axes.axison else {axis.label}
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not (axis.axes.axison and low <= tick.get_loc() <= high):
                texts |= {tick.label1, tick.label2}
    return texts
