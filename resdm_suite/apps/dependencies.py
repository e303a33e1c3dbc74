"""Source files that a stage depends on, from the import graph: they are inputs of the workflow's rules."""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp

import resdm

ROOT = Path(__file__).absolute().parents[2]
"""Folder that holds both packages."""


@cache
def import_graph() -> grimp.ImportGraph:
    """Imports of both packages, those inside functions included and those for type checkers left out."""
    return grimp.build_graph("resdm", "resdm_suite", exclude_type_checking_imports=True, cache_dir=None)


def modules(*entries: str, without: tuple[str, ...] = ()) -> list[str]:
    """Files of the entries' modules and of all modules that they import, directly or not.

    Parameters
    ----------
    *entries : str
        Names of modules, or paths of notebooks. A module of another package counts itself only.
    without : tuple of str
        Modules and packages that are not followed.

    Returns
    -------
    list of str
        Sorted paths, relative to the current folder if they are below it.
    """
    graph, found, files = import_graph(), set(), set()
    queue = [name for entry in entries for name in (_notebook_imports(entry) if entry.endswith(".ipynb") else [entry])]
    while queue:
        name = queue.pop()
        if name in found or any(f"{name}.".startswith(f"{excluded}.") for excluded in without):
            continue
        found.add(name)
        if name not in graph.modules:
            files.add(_outside(name))
            continue
        files.add(_file(name))
        queue += graph.find_modules_directly_imported_by(name)
        queue += [name.rpartition(".")[0]] if "." in name else []  # Python runs the packages around a module first
    here = Path.cwd()
    return sorted(str(path.relative_to(here) if path.is_relative_to(here) else path) for path in files)


def code_digest(notebook: str | Path) -> str:
    """SHA-256 (16 hex digits) of a notebook's code cells: outputs, metadata and text do not count."""
    return hashlib.sha256("\0".join(_code_cells(notebook)).encode()).hexdigest()[:16]


@cache
def _code_cells(notebook: str | Path) -> list[str]:
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _notebook_imports(notebook: str | Path) -> Iterator[str]:
    """Modules of both packages that a notebook's code cells import."""
    lines = [line for cell in _code_cells(notebook) for line in cell.splitlines() if not line.startswith(("%", "!"))]
    for node in ast.walk(ast.parse("\n".join(lines))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, attribute = name.rpartition(".")
            if package == "resdm" and attribute in resdm._PUBLIC:
                yield f"resdm.{resdm._PUBLIC[attribute]}"
            elif name in import_graph().modules:
                yield name
            elif package in import_graph().modules:
                yield package


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _outside(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {module!r}, on which a rule of the workflow depends")
    return Path(spec.origin)
