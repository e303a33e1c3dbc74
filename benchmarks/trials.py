"""The tracked trials of settings as a page: ``python benchmarks/trials.py``.

Reads ``benchmarks/results/trials.csv``, one row per training, and writes ``trials.md`` beside it: one table per method,
one row per trial, means over seeds and folds. Scores are of validation people, never of test people.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from resdm.io import write_text
from resdm_suite.reporting.tables import Block, Table, number

HERE = Path(__file__).resolve().parent

PATH = HERE / "results" / "trials.csv"
SCORES = {
    "psnr_amyloid": ("Aβ-PET", "PSNR (dB)", 2),
    "psnr_tau": ("tau-PET", "PSNR (dB)", 2),
    "r_amyloid": ("Aβ-PET", "r", 2),
    "r_tau": ("tau-PET", "r", 2),
    "auc_amyloid": ("Aβ-PET", "AUC", 2),
    "auc_tau": ("tau-PET", "AUC", 2),
    "seconds": ("", "training (s)", 0),
}
"""Column → tracer, title and decimals. PSNR is inside the brain; r and AUC are of the summary SUVR of the synthetic
PET, with that of the real PET and with status. Empty where not measured."""

COLUMNS = ("trial", "method", "seed", "changes", "fold", *SCORES, "device")
"""Columns of the CSV. ``changes``: the settings that differ from the profile's, as in its YAML; empty for the profile.
``fold``: number in the cross-validation over training people, or ``validation`` for the profile's validation people."""


def read_trials(path: str | Path = PATH) -> pd.DataFrame:
    """The stored trials, one row per training; scores are numbers (NaN if empty), other columns text.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, other columns, a score that is no number, a repeated training, or a trial with two methods or
        settings: names the file, the line and the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no trials; write them there, with the columns {', '.join(COLUMNS)}")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(frame) != list(COLUMNS):
        raise ValueError(f"{path}: columns {', '.join(frame)}; expected {', '.join(COLUMNS)}")

    def demand(right: pd.Series, message: str) -> None:
        if not right.all():
            i = right.idxmin()
            raise ValueError(f"{path}, line {i + 2}: {message.format(**frame.loc[i])}")

    needed = frame[["trial", "method", "seed", "fold", "device"]]
    demand(needed.ne("").all(axis=1), "trial, method, seed, fold and device must have a value; fill them in")
    demand(
        ~frame.duplicated(["trial", "seed", "fold"]), "trial {trial}, seed {seed}, fold {fold} has two rows; keep one"
    )
    first = frame.groupby("trial")[["method", "changes"]].transform("first")
    demand(
        frame[["method", "changes"]].eq(first).all(axis=1),
        "trial {trial} has another method or other changes in a line above; give it another name",
    )
    for column in SCORES:
        values = pd.to_numeric(frame[column].replace("", "nan"), errors="coerce")
        demand(
            values.notna() | frame[column].eq(""),
            f"{column} {{{column}!r}} is no number; correct it, or leave it empty",
        )
        frame[column] = values
    return frame


def summary(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per trial, in the order of the file.

    Columns: method, trial, changes, seeds, folds, trainings, device; for each of `SCORES` the mean and
    ``<score>_std``, the standard deviation over trainings (NaN for one).
    """

    def distinct(values: pd.Series) -> str:
        return ", ".join(dict.fromkeys(values))

    groups = trials.groupby(["method", "trial", "changes"], sort=False)
    named = groups.agg(
        seeds=("seed", distinct), folds=("fold", distinct), trainings=("seed", "size"), device=("device", distinct)
    )
    scores = groups[list(SCORES)]
    return named.join(scores.mean()).join(scores.std().add_suffix("_std")).reset_index()


def render(trials: pd.DataFrame) -> str:
    """The page as Markdown, the best mean of each column in bold."""
    table = summary(trials)
    shown = {name: head for name, head in SCORES.items() if table[name].notna().any()}
    columns = [("", label) for label in ("Trial", "Changes", "Seeds", "Folds")]
    columns += [*((group, label) for group, label, _ in shown.values()), ("", "Device")]
    blocks = []
    for method, part in table.groupby("method", sort=False):
        rows, best = [], set()
        for row in part.to_dict("records"):
            cells = [number(row[name], digits) for name, (*_, digits) in shown.items()]
            spreads = [number(row[f"{name}_std"], digits) for name, (*_, digits) in shown.items()]
            cells = [f"{mean} ± {std}" if std != "–" else mean for mean, std in zip(cells, spreads, strict=True)]
            changes = f"`{row['changes']}`" if row["changes"] else "none"
            rows.append((row["trial"], changes, row["seeds"], row["folds"], *cells, row["device"]))
        for j, name in enumerate(shown, start=4):
            if name != "seconds" and len(part) > 1:
                best |= {(i, j) for i, value in enumerate(part[name]) if value == part[name].max()}
        blocks.append(Block(method, tuple(columns), tuple(rows), frozenset(best)))
    return Table(
        name="trials",
        title="Trials of settings",
        notice="",
        frame=table,
        blocks=tuple(blocks),
        notes=(
            f"`python benchmarks/trials.py` makes this page of [trials.csv]({PATH.name}), {len(trials)} trainings.",
            "Mean ± standard deviation over the trainings (seeds × folds) of a trial, on validation people: PSNR "
            "inside the brain; r and AUC of the synthetic PET's summary SUVR, with the real PET's and with status. No "
            "number is of a test person. Bold: best mean of the column.",
        ),
    ).markdown()


def main(path: str | Path = PATH) -> Path:
    """Write the page beside the trials."""
    return write_text(Path(path).with_suffix(".md"), render(read_trials(path)))


if __name__ == "__main__":
    print(main())
