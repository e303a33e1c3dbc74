"""``resdm evaluate``: notebook 17 on anyone's volumes, and one page of its results."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from nbconvert import HTMLExporter

from resdm.io import write_text
from resdm.settings import TRACERS, ConfigError, to_dict
from resdm_suite.anatomy import Grid
from resdm_suite.cohorts.tables import read_sidecar, read_table
from resdm_suite.evaluation.external import EvaluationError, read_cases, read_scans
from resdm_suite.paths import visible
from resdm_suite.preprocessing.scans import open_image
from resdm_suite.profiles import Config, GridConfig, load_config, shipped

_OF_INPUT = ("EvaluationError", "FaultError", "LeakageError", "VolumeError")


def evaluate_volumes(
    table: str | Path,
    synthetic: Iterable[tuple[str, str | Path]],
    out: str | Path,
    *,
    scale: tuple[float, float] | None = None,
    trained_on: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Compare synthetic PET of any tool with real PET of the same people.

    Parameters
    ----------
    table : path
        Real scans, see `resdm_suite.evaluation.external.read_cases`.
    synthetic : iterable of (str, path)
        Name of a method and the folder of its volumes. None where the table names the volumes.
    out : path
        New, or that of an earlier evaluation. Gets ``evaluation.html`` (tables, figures, findings), the profile
        ``evaluation.yaml``, ``evaluation.ipynb`` and ``figures/evaluation/``: tables as CSV, Markdown and LaTeX,
        figures, and all numbers in ``evaluation_metrics.json``.
    scale : (low, high), optional
        SUVR of the values 0 and 1; by default values are in SUVR. Files whose sidecar states a scale keep theirs.
    trained_on : path, optional
        CSV with a column ``person``: the people on whom a method was trained.
    progress : bool
        Show a bar.

    Returns
    -------
    Path
        ``evaluation.html``.

    Raises
    ------
    EvaluationError, FaultError, LeakageError, VolumeError
        Input that cannot be evaluated.
    """
    try:
        import papermill  # here: of the extra packages for notebooks
    except ImportError:
        raise ConfigError("resdm evaluate runs a notebook: pip install 'resdm[notebooks]'") from None
    out, pairs = Path(out), list(synthetic)
    if visible(out, "*") and not (out / "evaluation.yaml").is_file():  # a profile or a notebook could be replaced
        raise EvaluationError(f"{out}: not empty and not of an earlier evaluation; give --out a new folder")
    synthetic = dict(pairs)
    if len(synthetic) < len(pairs):
        names = ", ".join(name for name, _ in pairs)
        raise EvaluationError(f"one name for two folders ({names}); give each folder a name of its own")
    people = [] if trained_on is None else _people(Path(trained_on))
    config = _profile(Path(table), synthetic, out)
    read_cases(table, synthetic, config, people)  # errors of the input, before a kernel starts
    os.environ["JUPYTER_PATH"] = str(shipped("configs") / "jupyter")
    settings = {"config": str((out / "evaluation.yaml").absolute()), "table": str(Path(table).absolute())}
    settings |= {"synthetic": {name: str(Path(place).absolute()) for name, place in synthetic.items()}}
    settings |= {"scale": None if scale is None else list(scale), "trained_on": people}
    try:
        notebook = papermill.execute_notebook(
            shipped("notebooks") / "17_evaluate.ipynb", out / "evaluation.ipynb", settings, kernel_name="resdm",
            progress_bar=progress, cwd=out,
        )  # fmt: skip
    except papermill.exceptions.PapermillExecutionError as error:
        if error.ename not in _OF_INPUT:
            raise
        raise EvaluationError(error.evalue) from None
    html, _ = HTMLExporter(exclude_input=True).from_notebook_node(notebook)
    return write_text(out / "evaluation.html", html)


def _people(path: Path) -> list[str]:
    frame = read_table(path)
    if (count := [*frame].count("person")) != 1:
        raise EvaluationError(f"{path}: {'two columns' if count else 'no column'} person; found {', '.join(frame)}")
    return frame["person"].tolist()


def _profile(table: Path, synthetic: dict[str, str | Path], out: Path) -> Config:
    """The profile of an evaluation: grid and scale of the first real PET, if the suite made it, else the paper's."""
    frame = read_scans(table)
    found = {tracer: [path for path in frame.get(tracer, ()) if path] for tracer in TRACERS}
    reals = {tracer: table.parent / paths[0] for tracer, paths in found.items() if paths}
    if not reals:
        raise EvaluationError(f"{table}: no real PET; expected paths in column amyloid or tau")
    preprocess: dict[str, Any] = {"grid": to_dict(_grid(next(iter(reals.values()))))}
    ranges = {}
    for tracer, path in reals.items():
        match (read_sidecar(path) or {}).get("intensity"):
            case {"kind": "fixed", "suvr_range": [int() | float(), int() | float()] as ends}:
                ranges[tracer] = ends
    if ranges:
        preprocess["suvr_range"] = {tracer: ranges.get(tracer, [0.0, 3.0]) for tracer in TRACERS}
    first = (next(iter(visible(Path(folder), "**/*_pet.nii*")), folder) for folder in synthetic.values())
    sidecars = [read_sidecar(path) for path in first]
    phantom = any("phantom" in str((sidecar or {}).get("cohort_notice")) for sidecar in sidecars)
    cohort = {"kind": "phantom", "phantom": {}} if phantom else {"kind": "other"}
    text = yaml.safe_dump({"cohort": cohort, "preprocess": preprocess})
    return load_config(write_text(out / "evaluation.yaml", text))


def _grid(path: Path) -> GridConfig:
    """The grid of a PET, if it is one of the suite; else that of the paper."""
    image = open_image(path, header_only=True)
    shape, voxel_mm = tuple(map(int, image.shape)), float(image.header.get_zooms()[0])
    same = len(shape) == 3 and min(shape) >= 16 and abs(Grid(shape, voxel_mm).affine - image.affine).max() < 1e-3
    return GridConfig(shape, round(voxel_mm, 6)) if same else GridConfig()
