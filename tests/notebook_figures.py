"""Draws the figure of a notebook from made-up data: runs its imports and the cell tagged ``figure``, nothing else."""

from __future__ import annotations

import ast
from typing import Any

import nbformat
from conftest import ROOT
from matplotlib.figure import Figure
from matplotlib.text import Text

from resdm_suite.reporting.style import style


def draw(notebook: str, **names: Any) -> Figure:
    """The figure that a notebook's cell draws with these names defined."""
    cells = [
        cell for cell in nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", 4).cells if cell.cell_type == "code"
    ]
    nodes = [node for cell in cells for node in ast.parse(cell.source).body]
    imports = ast.Module([node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)], [])
    (figure,) = [cell.source for cell in cells if "figure" in cell.metadata.get("tags", [])]
    space: dict[str, Any] = {}
    with style():
        exec(compile(imports, notebook, "exec"), space)
        space |= names
        exec(figure, space)
    return space["figure"]


def texts(figure: Figure) -> list[str]:
    """All that a figure says."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip()]


def check_texts(figure: Figure) -> None:
    """No text leaves the page and none hides another."""
    renderer = figure.canvas.get_renderer()
    with style():
        figure.canvas.draw()
    written = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in written if t.axes is None or _drawn(t)]
    assert len(boxes) > 10
    for i, (one, a) in enumerate(boxes):
        assert a.x0 >= -1, one
        assert a.x1 <= figure.bbox.width + 1, one
        assert a.y0 >= -1, one
        for other, b in boxes[i + 1 :]:
            x, y = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert x <= 1 or y <= 1, (one, other)


def _drawn(text: Text) -> bool:
    """Whether axes draw it: they keep tick labels beyond their limits."""
    axes = text.axes
    for axis in (axes.xaxis, axes.yaxis):
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if text in (tick.label1, tick.label2):
                low, high = sorted(axis.get_view_interval())
                return text.get_visible() and axes.axison and low <= tick.get_loc() <= high
    return axes.axison or text in axes.texts
