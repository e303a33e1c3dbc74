"""``resdm figures``: the figures of a run in another format, for a paper, by their notebooks and from stored results.

Notebooks run with ``RESDM_FIGURES`` set (`resdm_suite.profiles.REDRAWN`), so they take stored results (the walk through
the method alone computes its few steps), and their tables and figures go to a temporary folder: ``figures/`` stays as
it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from resdm.io import atomic, write_text
from resdm.settings import TRACERS, ConfigError, suggest
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.paths import visible
from resdm_suite.profiles import Config, shipped
from resdm_suite.records import RecordError

_SYNTHESISES = ("18_",)  # stores nothing from which it could be drawn


def drawn_by(config: Config) -> dict[str, Path]:
    """Every figure of a run that a notebook draws from stored results, and the notebook."""
    places = {}
    for path in visible(config.root / "notebooks", "[0-9]*.ipynb"):
        names = re.findall(r'save_figure\(figure, profile\.figures / \\"(\w+)\\"', path.read_text(encoding="utf-8"))
        if not path.name.startswith(_SYNTHESISES):
            places |= {name: path for name in names if (config.figures / f"{name}.png").is_file()}
    return places


def redraw(
    config: Config, figure: Sequence[str] = (), out: Path | None = None, *, form: str = "pdf", bare: bool = False
) -> Path:
    """Draw the figures of a run again, each with its caption as text.

    Parameters
    ----------
    config : Config
    figure : sequence of str
        Names, such as ``figure2``; by default all of `drawn_by`.
    out : path, optional
        By default ``work/<profile>/paper``. Gets ``<name>.<format>`` and ``<name>.txt``: title, notice of the data,
        explanation and numbers of people.
    form : {"pdf", "svg", "png"}
        Texts of the first two are text.
    bare : bool
        Without the heading: title, notice and explanation stand in the caption alone.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    ConfigError
        No such figure in this run.
    RecordError
        A notebook that failed, with its error.
    """
    known, out = drawn_by(config), out or config.work / "paper"
    if not known:
        raise ConfigError(f"{config.figures}: no figures; run `make reproduce PROFILE={config.profile}` first")
    if unknown := [name for name in figure if name not in known]:
        name = unknown[0]
        raise ConfigError(f"{config.figures}: no figure {name!r}{suggest(name, known)}; there are: {', '.join(known)}")
    names = list(figure) or list(known)
    people = _people(config)
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"RESDM_FIGURES": folder, "RESDM_FIGURE_FORMAT": f"{form}{' bare' * bare}"}
        for notebook in dict.fromkeys(known[name] for name in names):
            _run(notebook, config, environment)
        for name in names:
            with atomic(out / f"{name}.{form}") as to:
                to.write_bytes((Path(folder) / f"{name}.{form}").read_bytes())
            write_text(out / f"{name}.txt", f"{(Path(folder) / f'{name}.txt').read_text(encoding='utf-8')}\n{people}\n")
    return out


def _people(config: Config) -> str:
    """How many people the figures rest on."""
    index = read_index(config, None)
    counts = index.replace({"split": {"train": "training"}}).groupby("split")["person"].nunique()
    test = index[index["split"] == "test"]
    pets = [f"{test.loc[test[f'present_{t}'] == 1, 'person'].nunique()} with {t} PET" for t in TRACERS]
    others = [f"{counts[name]} {name}" for name in ("training", "validation") if name in counts]
    text = f"People: {counts.get('test', 0)} test ({', '.join(pets)}), {', '.join(others)}."
    return f"{text} Profile {config.profile}, seed {config.seed}."


def _run(notebook: Path, config: Config, environment: dict[str, str]) -> None:
    """Execute a notebook on a profile; the executed one is discarded with the folder of ``RESDM_FIGURES``."""
    places = (config.root / "configs" / f"{config.profile}.yaml", config.root / f"{config.profile}.yaml")
    profile = next((str(path) for path in places if path.is_file()), config.profile)
    out = str(Path(environment["RESDM_FIGURES"]) / notebook.name)
    command = [sys.executable, "-m", "papermill", str(notebook), out, "--no-progress-bar"]
    command += ["--cwd", str(config.root), "-k", "resdm", "-r", "config", profile]
    environment = environment | {"JUPYTER_PATH": str(shipped("configs") / "jupyter")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RecordError(f"{notebook.name}: {lines[-1] if lines else 'failed'}")
