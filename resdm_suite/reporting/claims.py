"""The claims ledger: each number and comparison printed in the paper, our value, and a verdict.

The claims are data (``data_manifests/paper/``); `KINDS` maps the kind of a claim to its rule. Our values come from the
stored tables of a profile, without volumes or models. ``templates/notes_claims.md`` states the rules.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.evaluation.image_quality import METRICS, read_index
from resdm_suite.profiles import Config
from resdm_suite.reporting import printed as paper
from resdm_suite.reporting import tables
from resdm_suite.reporting.printed import NAMES, SECTIONS, Pair, pairs, printed_gain, sign
from resdm_suite.reporting.stored import Comparison, Estimates, Results, Row, ends, mover, place
from resdm_suite.reporting.tables import CONTROLS, REFERENCE_METHOD, Block, Table, number, with_spread

HELD, FAILED, UNTESTABLE = "held", "did not hold", "not testable on this cohort"
CONTRADICTED, MISSING = "contradicts itself", "not computed"
STATUSES = (HELD, FAILED, UNTESTABLE, CONTRADICTED, MISSING)
"""Statuses of results."""

SAME, OTHER = "as the paper", "not as the paper"
"""Statuses of settings, beside `MISSING`. Settings are not results and are counted apart."""

BESIDE = "Beside the paper's claims"
"""Section of the comparisons with our own controls. They are not claims of the paper and are not counted."""

CONTROL_QUANTITIES = {"table2": "mae psnr ssim", "table4": "auc"}
"""Metrics of the comparisons with controls, by table."""

CODE = {
    "tokens": (77, "resdm/layers/clip.py", ()),
    "text_layers": (1, "resdm/prior.py", ()),
    "models_per_pair": (2, "resdm/method.py, PerTracer", ("Pix2Pix", "SC-GAN", "TransUNet")),
    "unified_models": (1, "resdm/baselines/ddpm.py, resvit.py", ("ResViT", "DDPM")),
}
"""Settings fixed in the code: value, file, and the methods concerned (none: the text encoder of ResDM). Tests compare
them with the code."""


# ── verdicts ─────────────────────────────────────────────────────────────────────


class Finding(NamedTuple):
    """The verdict on one claim, and our value, as columns of the ledger."""

    status: str
    reason: str
    ours: str = "–"
    ours_value: float = math.nan
    n: float = math.nan
    trainings: str = ""


def resolve(results: Results, row: Row) -> Finding:
    """The verdict on one claim by the rule of its kind, apart from contradictions within the paper."""
    path, notebook = place(results.config, row["output"])
    if notebook and not (results.config.root / path).is_file():
        return Finding(MISSING, f"{path} is not there; {notebook} makes it")
    return KINDS[row["kind"]](results, row)


def _not_in(results: Results, row: Row, *subjects: str) -> Finding:
    verb = "is" if len(subjects) == 1 else "are"
    return Finding(UNTESTABLE, f"{', '.join(subjects)} {verb} not in {results.file(row)}")


def _words(results: Results, row: Row) -> Finding:
    return Finding(UNTESTABLE, row["note"])


def _setting(results: Results, row: Row) -> Finding:
    """Compare a setting of the paper with that of the profile."""
    config, quantity, printed = results.config, row["quantities"], float(row["printed"])
    file, grid, method = f"configs/{config.profile}.yaml", config.preprocess.grid, config.methods.get(REFERENCE_METHOD)
    (value, _, methods), text, note, tolerance = CODE.get(quantity, (math.nan, "", ())), "", "", 0.0
    if methods:
        taken = [name for name in methods if name in config.methods]
        if not taken:
            return Finding(OTHER, f"{file} has none of {', '.join(methods)}")
        note = f": {', '.join(taken)}"
    elif quantity == "voxel":
        value = grid.voxel_mm
    elif quantity == "grid":
        value, text = grid.shape[0] if len(set(grid.shape)) == 1 else math.nan, " × ".join(map(str, grid.shape))
    elif quantity in ("competitors", "models"):
        present = {*results.frames["table2"]["subject"]} & {*tables.PAPER_METHODS}
        value = len(present - {REFERENCE_METHOD} if quantity == "competitors" else present)
    elif quantity == "folds":
        value = results.frames["status_folds"]["fold"].nunique()
    elif not hasattr(method, "eta_range"):  # by its settings: their class would import torch
        return Finding(OTHER, f"{file} has no residual diffusion {REFERENCE_METHOD}")
    elif quantity in ("eta_first", "eta_last"):  # limits in the paper: η_1 → 0, η_T → 1
        value, tolerance = method.eta_range[quantity == "eta_last"], 0.05
    elif quantity in ("text_encoder", "text_layers"):
        clip = method.prior.weights != "none" and method.prior.tower is None
        value, text = (printed, "ViT-B/32" * (quantity == "text_encoder")) if clip else (math.nan, _NO_CLIP)
        if quantity == "text_layers" and clip:
            note = "; the norm and the projection after it are trained too, which is the released code's"
    elif quantity not in CODE:
        raise ValueError(f"data_manifests/paper/claims.csv, {row['id']}: no setting {quantity!r} is known")
    text = text or f"{value:g}"
    if abs(value - printed) <= tolerance:
        return Finding(SAME, "taken by this profile" + note, text, value)
    return Finding(OTHER, f"this profile has {text}", text, value)


_NO_CLIP = "a small tower of its own, no CLIP"


def _value(results: Results, row: Row) -> Finding:
    subject, *cell = key = row["subjects"], row["tracers"], row["quantities"]
    values = results.values(row, "whole")
    if key not in values:
        known = any(name == subject for name, *_ in values)
        return _not_in(results, row, f"{subject}, {' '.join(NAMES[name] for name in cell)}" if known else subject)
    text = with_spread(values[key].value, values[key].std)
    return _absolute(results, row, text, values[key], values[key].n, results.error(row["output"], *key))


def _gain(results: Results, row: Row) -> Finding:
    ((better, worse, *cell),) = pairs(row)
    result = results.compare(row, (better, worse, *cell), "whole")
    if result is None:
        return _not_in(results, row, worse)
    error = math.hypot(*(results.error(row["output"], subject, *cell) for subject in (better, worse)))
    return _absolute(results, row, result.text, (result.gain, result.low, result.high), result.n, error)


def _demographic(results: Results, row: Row) -> Finding:
    frame = results.frames["table1"]
    part = frame[(frame["subject"] == row["quantities"]) & (frame["diagnosis"] == row["subjects"])]
    values = part.set_index("statistic")["value"]
    if values.isna().all():
        return _not_in(results, row, f"{row['quantities']} of {row['subjects']}")
    text, n = tables.demographic(values), float(part["n"].iloc[0])
    if "mean" not in values:
        return _absolute(results, row, text, (float(values.iloc[0]) if len(values) == 1 else math.nan,), n)
    same = frame[frame["diagnosis"] == row["subjects"]]
    people = min([n, *same.loc[same["subject"] == "people", "value"]])  # visits of one person go together
    reach, printed_std = 1.96 * values["std"] / math.sqrt(people), float(row["printed"].split(" ± ")[1])
    interval = values["mean"], values["mean"] - reach, values["mean"] + reach
    return _absolute(results, row, text, interval, n, printed_std / math.sqrt(results.sizes[row["subjects"]]))


def _count(results: Results, row: Row) -> Finding:
    index = read_index(results.config, split=None)
    sets = index.loc[index[[f"present_{tracer}" for tracer in TRACERS]].astype(bool).all(axis=1), "split"]
    splits = {"training_sets": ["train", "validation"], "test_sets": ["test"]}  # the paper has no validation set
    value = int(sets.isin(splits.get(row["quantities"], sets)).sum())
    return _absolute(results, row, str(value), (value,), len(index))


def _absolute(
    results: Results, row: Row, text: str, interval: tuple[float, ...], n: float, error: float | None = None
) -> Finding:
    """Compare our number with the printed one, which has a standard error too, or our count, which has none."""
    config, exact, values = results.config, error is None, (text, interval[0], n)
    if config.cohort.kind != "adni":
        return Finding(UNTESTABLE, f"{'count' if exact else 'absolute number'} of another cohort", *values)
    if exact:
        same = text == row["printed"]
        return Finding(HELD if same else FAILED, "the same count" if same else "another count", *values)
    if row["quantities"] in METRICS and config.preprocess.intensity != "minmax":
        reason = "another intensity unit: a fixed range of SUVR here, not each volume's own (preprocess.intensity)"
        return Finding(UNTESTABLE, reason, *values)
    if any(map(math.isnan, interval[1:3])):
        return Finding(MISSING, f"{results.file(row)} has no interval of ours", *values)
    printed = float(row["printed"].split()[0])
    apart, low, high = mover(interval, (printed, printed - 1.96 * error, printed + 1.96 * error))
    reason = f"ours − printed: {number(apart, 2)} {ends(low, high)}"
    return Finding(HELD if low <= 0 <= high else FAILED, reason, *values)


def _close(results: Results, row: Row) -> Finding:
    ((first, other, *cell),) = pairs(row)
    pair = other, first, *cell
    result, planted = (results.compare(row, pair, view) for view in ("brain", "planted"))
    if result is None:
        return _not_in(results, row, f"{first} or {other}")
    margin = printed_gain(results.printed, row["output"], pair)
    values = f"gap {number(result.gain, 2)}", result.gain, result.n
    if not result.tested:
        return Finding(MISSING, f"{results.file(row)} has no interval of ours", *values)
    reason = f"our gap {ends(result.low, result.high)}, printed {number(margin, 2)}"
    if planted is not None and planted.tested:
        reason += f"; by the planted status {ends(planted.low, planted.high)}"
    if result.high <= margin:
        return Finding(HELD, reason, *values)
    direction = "no wider, but not supported" if result.gain <= margin else "wider"
    return Finding(FAILED, f"{direction}: {reason}", *values)


def _comparisons(results: Results, row: Row) -> Finding:
    """A sentence with comparisons; it held if each of them held."""
    expected, found, ours = pairs(row), results.compare_all(row), results.values(row)
    tested = [result for result in found if result.tested]
    subjects = {subject for subject, *_ in ours}
    missing = dict.fromkeys(
        f"{NAMES[metric]} of {subject}" if subject in subjects else subject
        for better, worse, tracer, metric in expected
        for subject in (better, worse)
        if (subject, tracer, metric) not in ours
    )
    if not found:
        return _not_in(results, row, *missing)
    text = _text(row, expected, found, ours)
    if not tested:
        return Finding(MISSING, f"{results.file(row)} holds no test and no interval for it", text)
    trainings = _trainings(results, row)
    ending = _beside(results, row) + (f". In {trainings} trainings" if trainings else "")
    value = found[0].gain if len(expected) == 1 else math.nan
    values = text, value, min(result.n for result in tested), trainings
    failed = sorted((result for result in tested if not result.held), key=lambda result: result.gain > 0)
    if failed:
        reasons = "; ".join(f"{result.direction}: {result}" for result in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        return Finding(FAILED, reasons + more + ending, *values)
    if len(tested) < len(expected):
        absent = f"{', '.join(missing) or 'some tests'} not in {results.file(row)}"
        return Finding(UNTESTABLE, f"{len(tested)} of {len(expected)} held; {absent}{ending}", *values)
    weakest = max(tested, key=lambda result: (0.0 if math.isnan(result.p) else result.p, -result.low))
    return Finding(HELD, f"{'' if len(tested) == 1 else 'the weakest: '}{weakest}{ending}", *values)


def _text(row: Row, expected: list[Pair], found: list[Comparison], ours: Estimates) -> str:
    """The values of a chain, the gain of a single comparison, or how many held."""
    if row["kind"] == "chain" and len(found) == len(expected):
        values = [ours[subject, *expected[0][2:]].value for subject in row["subjects"].split()]
        steps = [f"{'>' if a > b else '<' if a < b else '='} {number(b, 2)}" for a, b in pairwise(values)]
        return " ".join([number(values[0], 2), *steps])
    return found[0].text if len(expected) == 1 else f"{sum(one.held for one in found)} of {len(expected)}"


def _beside(results: Results, row: Row) -> str:
    """For orientation: how many parts of the comparison held in another view."""
    quality = "whole", "SSIM over the whole grid", ("ssim",)
    views = {"table2": quality, "table3": quality, "table4": ("planted", "By the planted status", ("auc", "acc", "f1"))}
    views["atn"] = "planted", "By the planted status", ("acc", "balanced")
    if row["output"] not in views:
        return ""
    view, title, metrics = views[row["output"]]
    tested = [result for result in results.compare_all(row, view) if result.pair[3] in metrics and result.tested]
    return f". {title}: {sum(result.held for result in tested)} of {len(tested)} held" if tested else ""


def _trainings(results: Results, row: Row) -> str:
    """``k of n`` trainings with every mean difference in the right direction; empty without repeats."""
    repeats = {subject: results.trainings.get(subject) or [subject] for subject in row["subjects"].split()}
    seeds = dict.fromkeys(name.partition("@")[2] for names in repeats.values() for name in names)
    if len(seeds) < 2 or row["output"] not in ("table2", "table3"):
        return ""
    right, counted = 0, 0
    for seed in seeds:
        chosen = {s: f"{s}@{seed}" if f"{s}@{seed}" in names else s for s, names in repeats.items()}
        keys = [[(chosen[subject], *pair[2:]) for subject in pair[:2]] for pair in pairs(row)]
        gains = [sign(a[2]) * (results.means[a] - results.means[b]) for a, b in keys if {a, b} <= set(results.means)]
        right, counted = right + (bool(gains) and min(gains) > 0), counted + bool(gains)
    return f"{right} of {counted}" if counted else ""


KINDS: dict[str, Callable[[Results, Row], Finding]] = {
    "value": _value, "characteristic": _demographic, "gain": _gain, "count": _count, "setting": _setting,
    "best": _comparisons, "chain": _comparisons, "close": _close, "words": _words, "control": _comparisons,
}  # fmt: skip
"""Kind of a claim → its rule."""


# ── the ledger ────────────────────────────────────────────────────────────────────────────────────


COLUMNS = ["id", "section", "kind", "statement", "printed", "ours", "n", "unit", "where", "status", "reason"]
COLUMNS += ["trainings", "printed_value", "ours_value"]

WIDTHS = {"Claim": 0.29, "Printed": 0.1, "Ours": 0.1, "n": 0.05, "Status": 0.13, "Why": 0.33}
"""Relative widths of columns in LaTeX."""


def having(table: Table, *statuses: str) -> Table:
    """The paper's claims with any of these statuses, in one list."""
    part = table.frame[table.frame["status"].isin(statuses) & (table.frame["kind"] != "control")]
    notes = () if len(part) else ("none",)
    block = _list("", part, sections=True)
    return Table(table.name, ", ".join(statuses), table.notice, part, (block,), notes, WIDTHS)


def claims(config: Config) -> Table:
    """Every claim of the paper with our value and a verdict.

    Parameters
    ----------
    config : Config
        Values are read from ``figures/<profile>/``, counts from ``work/<profile>/``. A missing file gives
        ``not computed`` and the notebook to run.

    Returns
    -------
    Table
        Frame: id, section, kind, statement, printed, ours, n, unit, where, status, reason, trainings (``k of n``, empty
        without repeats), printed_value and ours_value (empty unless a claim is a single number). ``n`` counts people
        for image quality, else the units of the row's file. Rows of kind ``control`` are not claims of the paper.

    Raises
    ------
    ValueError
        An invalid file.
    """
    printed, results = paper.printed_claims(config.root), Results(config)
    against = paper.contradictions(printed, config.root)
    rows = [
        row
        | {"printed": _printed_text(row, results), "where": _where(row, config)}
        | {"printed_value": float(row["printed"].split()[0]) if row["kind"] in paper.NUMBERS else math.nan}
        | resolve(results, row)._asdict()
        | ({"status": CONTRADICTED, "reason": against[row["id"]]} if row["id"] in against else {})
        for row in [*printed.to_dict("records"), *_controls(results)]
    ]
    frame = pd.DataFrame(rows)[COLUMNS].astype({"n": "Int64"})
    blocks = [_summary(frame), _distinct(results, printed)]
    blocks += [_list(_title(section), frame[frame["section"] == section]) for section in SECTIONS]
    if len(controls := frame[frame["section"] == BESIDE]):
        blocks.append(_list(f"{BESIDE}: {REFERENCE_METHOD} against our controls", controls))
    title = "Claims of the paper, and what became of them"
    names = {"SAME": SAME, "OTHER": OTHER, "HELD": HELD, "FAILED": FAILED, "UNTESTABLE": UNTESTABLE}
    names |= {"CONTRADICTED": CONTRADICTED, "MISSING": MISSING, "GAIN_TOLERANCE": paper.GAIN_TOLERANCE}
    return Table("claims", title, config.notice, frame, tuple(blocks), tables.notes("claims", **names), WIDTHS)


def headline(frame: pd.DataFrame) -> str:
    """``Settings: 9 of 12 as the paper. Results: 13 held, …``, without controls."""
    settings = frame.loc[frame["kind"] == "setting", "status"]
    results = frame.loc[~frame["kind"].isin(["setting", "control"]), "status"].value_counts()
    counts = ", ".join(f"{results[status]} {status}" for status in STATUSES if status in results)
    return f"Settings: {(settings == SAME).sum()} of {len(settings)} {SAME}. Results: {counts}."


def _controls(results: Results) -> list[Row]:
    """Rows that compare ResDM with each control in our tables."""
    rows = []
    for output, quantities in CONTROL_QUANTITIES.items():
        *others, last = (NAMES[metric] for metric in quantities.split())
        better_in = " and ".join([", ".join(others), last] if others else [last])
        rows += [
            {"id": f"control/{output}/{name}", "section": BESIDE, "kind": "control", "output": output}
            | {"subjects": f"{REFERENCE_METHOD} {name}", "tracers": " ".join(TRACERS), "quantities": quantities}
            | dict.fromkeys(("printed", "unit"), "")
            | {"statement": f"{REFERENCE_METHOD} is better than {tables.TITLES.get(name, name)}: {better_in}"}
            for name in CONTROLS
            if name != "ceiling" and any(subject == name for subject, *_ in results.stored[output, "brain"][0])
        ]
    return rows


def _printed_text(row: Row, results: Results) -> str:
    """The printed text; for a comparison without a number, the result in the paper's own table."""
    if row["printed"] or row["kind"] in ("words", "control") or row["output"] == "atn":
        return row["printed"] or "–"
    gains = [printed_gain(results.printed, row["output"], pair) for pair in pairs(row)]
    if row["kind"] == "close":
        return f"gap {number(-gains[0], 2)}"
    return f"{sum(gain > 0 for gain in gains)} of {len(gains)}"


def _where(row: Row, config: Config) -> str:
    """File of our value, and the notebook that computes it."""
    if row["kind"] == "words":
        return ""
    path, notebook = place(config, row["output"])
    return f"{path}: {notebook}" if notebook else CODE.get(row["quantities"], ("", path))[1]


def _summary(frame: pd.DataFrame) -> Block:
    results = frame[~frame["kind"].isin(["setting", "control"])]
    counts = pd.crosstab(results["section"], results["status"]).reindex(columns=STATUSES, fill_value=0)
    counts = counts.loc[[section for section in SECTIONS if section in counts.index]]
    counts.loc["all"] = counts.sum()
    columns = {"Results of": map(_title, counts.index), **{status: counts[status].map(str) for status in STATUSES}}
    return tables.text_block(columns, headline(frame))


def _distinct(results: Results, printed: pd.DataFrame) -> Block:
    """Count each distinct comparison of the sentences once."""
    rows = []
    for output, part in printed[printed["kind"].isin(["best", "chain"])].groupby("output"):
        claimed = [(pair, row) for row in part.to_dict("records") for pair in pairs(row)]
        found = [results.compare(row, pair) for pair, row in dict(claimed).items()]
        tested = [result for result in found if result is not None and result.tested]
        held = sum(result.held for result in tested)
        right = sum(result.gain > 0 for result in tested) - held
        counts = len(part), len(claimed), len(found), held, right, len(tested) - held - right, len(found) - len(tested)
        name = "A/T/(N)" if output == "atn" else f"{output[:-1].capitalize()} {output[-1]}"
        rows.append((name, *map(str, counts)))
    labels = ("In", "sentences", "comparisons", "distinct", "held", "right way, not supported", "not the right way")
    return Block("Comparisons, each counted once", tuple(("", label) for label in (*labels, "no test")), tuple(rows))


def _title(section: str) -> str:
    return f"Section {section}" if section[0].isdigit() else section


def _list(title: str, part: pd.DataFrame, *, sections: bool = False) -> Block:
    """One row per claim; ``sections`` adds the section of the paper to each."""
    statements = []
    for section, statement, where in part[["section", "statement", "where"]].itertuples(index=False):
        place = f" [{_short(where)}]" if where else ""
        statements.append(f"{_title(section)}: " * sections + statement + place)
    columns = {"Claim": statements, "Printed": (part["printed"] + " " + part["unit"]).str.strip(), "Ours": part["ours"]}
    columns["n"] = ["–" if pd.isna(n) else str(n) for n in part["n"]]
    columns |= {"Status": part["status"], "Why": part["reason"]}
    highlighted = [(i, 4) for i, status in enumerate(part["status"]) if status in (FAILED, CONTRADICTED)]
    return tables.text_block(columns, title, highlighted)


def _short(where: str) -> str:
    """``table2.csv, 04``; the CSV has the full text."""
    path, _, notebook = where.partition(": notebooks/")
    return f"{path.rsplit('/', 1)[-1]}, {notebook[:2]}" if notebook else path
