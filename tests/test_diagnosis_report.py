"""Table 4 and Figures 4 and 5: values from the stored readings, the paper's beside them, the same bytes twice."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from notebook_cells import check_latex, check_texts, draw, run_cells, texts
from stored_cohort import make_config
from stored_readings import SWEEP, make_age, make_scores, make_sex, make_status, store_readings

from resdm_suite.evaluation.conditioning import age_effects, age_summary, sex_effects, sex_summary, without_chance
from resdm_suite.evaluation.status import status_summary
from resdm_suite.reporting.cases import figure5_data
from resdm_suite.reporting.diagnosis import source_label, status_sources
from resdm_suite.reporting.style import COLOURS, method_styles
from resdm_suite.reporting.tables import number, read_paper, with_interval, with_spread

NOTICE = "phantom data: not a reproduction of the paper's numbers"
SOURCES = {"mri": 1.2, "ResDM": 2.0, "ResDM@seed1": 2.0, "real": 4.0, "template": 0.0, "DDPM": 1.4, "age_sex": 0.5}
SOURCES |= {"linear": 1.6, "Base": 1.0, "majority": 0.0, "ceiling": 3.0}
ROWS = ["DDPM", "ResDM", "real", "Base", "linear", "template", "ceiling", "mri", "age_sex", "majority"]


@pytest.fixture(scope="module")
def status_and_folds() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both targets; of the planted one the ceiling's own posterior too."""
    parts = [make_status(SOURCES), make_status(SOURCES | {"posterior": 3.0}, seed=1, target="planted")]
    return tuple(map(pd.concat, zip(*parts, strict=True)))


@pytest.fixture(scope="module")
def config(tmp_path_factory, status_and_folds):
    config = make_config(tmp_path_factory.mktemp("readings"))
    store_readings(config, status=status_and_folds[0], status_folds=status_and_folds[1])
    return config


def fourth_cells(config) -> dict:
    return run_cells("06", config, "06-02", "06-06", "06-12", "06-08")


@pytest.fixture(scope="module")
def drawn(config):
    return fourth_cells(config)


@pytest.fixture(scope="module")
def fourth(drawn):
    return drawn["table"]


def block_of(table, title: str):
    return next(block for block in table.blocks if block.title.startswith(title))


def cells(block, row: str) -> dict[str, str]:
    (found,) = [cells for cells in block.rows if cells[0] == row]
    return {f"{group} {label}".strip(): cell for (group, label), cell in zip(block.columns, found, strict=True)}


@pytest.mark.parametrize(("label", "note"), [
    (0, "AUC and F1 without a value: not defined, test people of one class"),
    ("amyloid", "Cut-off label, tau status: not defined: no label, one class only"),
    ("", "Cut-off label, tau status: not defined: no label, one class only"),
])  # fmt: skip
def test_what_is_not_defined_is_said(tmp_path, label, note):
    """Test people of one class, one tracer without a classifier, and both."""
    config, (status, folds) = make_config(tmp_path), make_status({"ResDM": 2.0, "real": 4.0, "mri": 1.0}, people=12)
    if label != 0:
        gone = {"fold": 0, "target": "label", "source": "real", "tracer": "tau", "n_train": 0, "n_held_out": 0}
        status, folds = (frame[frame["tracer"] == label] for frame in (status, folds))
        folds = pd.concat([folds, pd.DataFrame([gone])])
    else:
        status["label"] = label
    store_readings(config, status=status, status_folds=folds)
    assert note in run_cells("06", config, without=("06-04",))["table"].markdown()
    assert (config.figures / "table4_roc.png").is_file()


def test_rows_are_the_papers_then_the_controls(status_and_folds, fourth):
    planted = [*ROWS[:7], "posterior", *ROWS[7:]]
    assert status_sources(status_and_folds[0]["source"], read_paper(4)["method"]) == planted  # trainings are one row
    rows = fourth.frame.groupby("target", sort=False)["source"].unique()
    assert {target: list(sources) for target, sources in rows.items()} == {"planted": planted, "label": ROWS}
    assert len(block_of(fourth, "Cut-off label").rows) == len(ROWS)
    assert not fourth.frame.duplicated(["source", "target", "tracer", "metric"]).any()
    assert len(fourth.frame) == (10 + 11) * 2 * 6
    trained = fourth.frame.groupby("source")["trainings"].unique()
    assert (trained["ResDM"].tolist(), trained["DDPM"].tolist()) == ([2], [1])


def test_values_are_of_the_readings_in_percent(config, status_and_folds, fourth):
    names = ["DDPM", "ResDM", "real", "mri"]
    expected = status_summary(status_and_folds[0], names, ["mri", "linear", "ResDM"], seed=config.seed)
    keys = ["source", "target", "tracer", "metric"]
    found = fourth.frame.set_index(keys).loc[list(expected[keys].itertuples(index=False, name=None))]
    scale = np.where(expected["metric"] == "brier", 1, 100)
    for column in ("mean", "std", "ci_low", "ci_high", "over_mri", "over_linear_low", "over_ResDM_high"):
        assert found[column].to_numpy() == pytest.approx(expected[column].to_numpy() * scale, nan_ok=True)


def test_paper_values_stand_where_the_paper_has_them(fourth):
    frame = fourth.frame
    has = frame["source"].isin(["DDPM", "ResDM", "real"]) & frame["metric"].isin(["auc", "acc", "f1"])
    assert (frame["paper"].notna() == (has & (frame["target"] == "label"))).all()


def test_print(fourth):
    rows = fourth.frame.set_index(["target", "source", "tracer", "metric"]).sort_index()
    row = rows.loc[("label", "ResDM", "tau", "f1")]
    shown = cells(block_of(fourth, "Cut-off label: mean over the folds"), "ResDM")
    assert shown["tau status F1 (%) ↑"] == with_spread(row["mean"], row["std"])
    assert cells(block_of(fourth, "Printed in the paper"), "ResDM")["tau status F1 (%) ↑"] == "76.67 ± 6.00"
    row = rows.loc[("planted", "ResDM", "amyloid", "auc_mean_score")]
    shown = cells(block_of(fourth, "Planted status: score averaged over the folds, Aβ status"), "ResDM")
    assert shown["AUC − MRI alone"] == with_interval(*row[["over_mri", "over_mri_low", "over_mri_high"]], 1)
    assert shown["AUC − ResDM"] == "–"
    row = rows.loc[("planted", "ResDM", "amyloid", "auc_adjusted")]
    assert shown["AUC at equal age and sex (%) ↑"] == with_interval(*row[["mean", "ci_low", "ci_high"]], 1)
    held_out = cells(fourth.blocks[-1], "Cut-off label: real PET")
    assert held_out["tau status AUC (%) ↑"] == "88.00 ± 1.58"  # 86 … 90


def test_best_is_bold_and_real_pet_is_no_rival(fourth):
    block = block_of(fourth, "Planted status: mean over the folds")
    bounds = [i for i, row in enumerate(block.rows) if row[0] in ("real PET", "ceiling", "ceiling's posterior")]
    assert len(bounds) == 3
    assert not {i for i, _ in block.best} & set(bounds)
    for j in range(1, len(block.columns)):
        means = np.array([float(row[j].split(" ±")[0]) for row in block.rows])
        means[bounds] = -1
        assert (int(np.argmax(means)), j) in block.best


def test_markdown_latex_and_bytes(config, fourth, drawn):
    paths = [path for path in sorted(config.figures.glob("table4*")) if path.suffix != ".json"]
    before = {path: path.read_bytes() for path in paths}
    ends = (".csv", ".md", ".tex", "_calibration.csv", "_roc.png", "_roc.svg")
    assert {path.name for path in paths} == {f"table4{end}" for end in ends}
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        fourth_cells(config)
    assert {path: path.read_bytes() for path in paths} == before
    text = fourth.markdown()
    assert text.startswith("## Table 4: ")
    assert NOTICE in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    check_latex(fourth.latex())
    check_figure(drawn["figure"])


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


def figure4(summary, effects):
    return draw("07_figure4_gender", profile=SimpleNamespace(notice=NOTICE), summary=summary, effects=effects)


def figure5(age, summary, effects, individual=True):
    profile = SimpleNamespace(notice=NOTICE, individual=individual)
    points, lines = figure5_data(profile, age)
    return draw("08_figure5_age", profile=profile, points=points, lines=lines, summary=summary, effects=effects)


def check_figure(figure):
    assert NOTICE in texts(figure)
    check_texts(figure)


@functools.cache
def sex_frames():
    sex, scores = make_sex(0.6), make_scores({"no_sex": 0.2, "wrong_sex": 0.5})
    return sex_summary(sex, "ResDM", seed=0), sex_effects(sex, scores, "ResDM", seed=0)


@functools.cache
def age_frames(sweep=SWEEP):
    age, scores = make_age(0.4, sweep=sweep), make_scores({"no_age": 0.2, "shuffled_age": 0.5})
    return age, age_summary(age, "ResDM", seed=0), age_effects(age, scores, "ResDM", seed=0)


def test_figure4_draws_its_numbers():
    summary, effects = sex_frames()
    figure = figure4(summary, effects)
    check_figure(figure)
    bars, fit, _ = figure.axes[3:6]  # tau
    rows = summary[summary["tracer"] == "tau"].set_index(["prompt", "metric"])["value"]
    heights = [patch.get_height() for patch in bars.patches]
    expected = [100 * rows[prompt, metric] for metric in ("auc", "acc", "f1") for prompt in ("right", "none", "wrong")]
    assert heights == pytest.approx(expected)
    change = effects.set_index(["name", "tracer"]).loc[("psnr_right_wrong", "tau")]
    assert fit.lines[1].get_ydata()[0] == pytest.approx(-change["estimate"])
    (segment,) = fit.collections[1].get_segments()
    assert sorted(segment[:, 1]) == pytest.approx([-change["high"], -change["low"]])
    told = without_chance(effects, pd.DataFrame({"tracer": ["amyloid", "tau"], "held_out_p": [0.5, 0.001]}))
    titles = [axes.get_title(loc="left") for axes in figure4(summary, told).axes]
    assert [title.partition(":")[0] for title in titles if "classifier at chance" in title] == ["(a) Aβ-PET"]


def test_figure5_draws_every_session_and_says_r():
    age, summary, effects = age_frames()
    figure = figure5(age, summary, effects)
    check_figure(figure)
    assert len(figure.axes) == 10
    part = age[(age["tracer"] == "tau") & (age["condition"] == "shuffled_age")]
    points = figure.axes[8].lines[0]
    assert sorted(points.get_xdata()) == pytest.approx(sorted(part["prompt_age"]))
    assert sorted(points.get_ydata()) == pytest.approx(sorted(part["predicted"]))
    rows = summary.set_index(["tracer", "condition", "against"])
    for condition, against in (("real", "own"), ("factual", "prompt"), ("no_age", "own"), ("shuffled_age", "prompt")):
        row = rows.loc[("amyloid", condition, against)]
        expected = " ".join(["r", number(row["r"], 2), f"[{number(row['low'], 2)}, {number(row['high'], 2)}]"])
        assert [text for text in texts(figure) if expected in text]


def test_figure5_without_single_people():
    age, summary, effects = age_frames()
    config = SimpleNamespace(individual=False)
    points, lines = figure5_data(config, age)
    real = age[(age["tracer"] == "amyloid") & (age["condition"] == "real")]
    people = real.assign(years=5 * np.floor(real["age"] / 5)).groupby("years")["person"].nunique()
    shown = points.query("tracer == 'amyloid' and condition == 'real'")
    assert shown["years"].tolist() == [years + 2.5 for years in people.index[people >= 5]]
    assert (people < 5).any()  # and these are left out
    assert points["spread"].notna().all()
    assert set(lines["line"]) == {"mean"}
    few = age[age["person"].isin(age["person"].unique()[:4])]
    assert [len(table) for table in figure5_data(config, few)] == [0, 0]
    assert len(figure5(age, summary, effects, individual=False).axes) == 10
    assert len(figure5(*age_frames(sweep=())).axes) == 8


@pytest.mark.parametrize("people", [1, 4])
def test_a_handful_of_people_without_controls_is_drawn_without_intervals(people, tmp_path):
    config = make_config(tmp_path)
    status, folds = make_status({"real": 3.0, "DDPM": 1.0}, people=people)
    store_readings(config, status=status, status_folds=folds)
    drawn = fourth_cells(config)
    assert drawn["table"].latex()
    assert drawn["table"].frame[["over_mri", "over_linear", "over_ResDM"]].isna().all(axis=None)
    assert not [label for block in drawn["table"].blocks for _, label in block.columns if "AUC −" in label]
    assert drawn["frame"].loc[drawn["frame"]["metric"] == "acc", "mean"].between(0, 100).all()
    sex, scores = make_sex(0.5, people=people), make_scores({"no_sex": 0.2, "wrong_sex": 0.5}, people=people)
    age, other = make_age(0.5, people=people), make_scores({"no_age": 0.2, "shuffled_age": 0.5}, people=people)
    fourth = figure4(sex_summary(sex, "ResDM", seed=0), sex_effects(sex, scores, "ResDM", seed=0))
    fifth = figure5(age, age_summary(age, "ResDM", seed=0), age_effects(age, other, "ResDM", seed=0))
    for figure in (drawn["figure"], fourth, fifth):
        figure.canvas.draw()


def test_the_roc_figure_has_few_curves_and_the_best_other_method(drawn):
    labels = [label.partition(":")[0] for label in drawn["figure"].axes[0].get_legend_handles_labels()[1]][::-1]
    assert labels == ["real PET", "ceiling", "ResDM", "DDPM", "linear", "MRI alone", "age and sex alone"]
    assert "Table 4 has all sources" in drawn["figure"].caption


def test_no_two_sources_have_one_colour():
    sources = [*ROWS, *COLOURS, "+L_high", "+prior", "as_published", "per_tracer", "posterior"]
    colours = [colour for colour, _ in method_styles(sorted({*sources})).values()]
    assert len(set(colours)) == len(colours) == len({*sources})
    assert (source_label("as_published"), source_label("mri")) == ("as published", "MRI alone")
