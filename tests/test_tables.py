"""Tables 1 and 2 as notebooks 00 and 04 make them: every number recomputed, and what is printed."""

from __future__ import annotations

import dataclasses
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from notebook_cells import PICTURES, check_latex, run_cells
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from stored_cohort import GRID, LABELS, make_cohort, make_config

from resdm.baselines.ddpm import DDPMConfig
from resdm.baselines.linear import DemographicsConfig, LinearConfig
from resdm.baselines.pix2pix import Pix2PixConfig
from resdm.baselines.regression import RegressionConfig
from resdm.io import write_csv, write_json
from resdm.prior import PriorConfig
from resdm.residual_diffusion import ResidualDiffusionConfig
from resdm.settings import MethodConfig
from resdm_suite.anatomy import mni_map
from resdm_suite.cohorts.manifest import EMPTY, write_manifest
from resdm_suite.evaluation.image_quality import read_index, read_scores, score_method
from resdm_suite.evaluation.statistics import interval, paired_test
from resdm_suite.paths import image_path
from resdm_suite.profiles import CohortConfig
from resdm_suite.reporting.cases import regional_comparison
from resdm_suite.reporting.tables import (
    Block,
    Table,
    cohort_sessions,
    costs,
    demographic,
    is_best,
    known_inputs,
    notes,
    number,
    p_value,
    pivot,
    present_methods,
    read_trainings,
    with_interval,
)

NOTICE = "phantom data: not a reproduction of the paper's numbers"
METHODS = {"ResDM": 0.3, "DDPM": 0.5, "regression": 0.4}
NAMES = ["DDPM", "ResDM", "regression", "template"]
KEYS = ["method", "tracer", "region", "metric"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config, index = make_cohort(tmp_path_factory.mktemp("cohort"), METHODS)
    config = dataclasses.replace(config, methods={name: MethodConfig("x") for name in METHODS})
    for method in METHODS:
        score_method(config, method)
    timing = {"parameters": 29_200_000, "seconds": 120.5, "peak_memory_bytes": 3 * 2**30}
    write_json(config.model("ResDM") / "timing.json", timing)
    write_json(config.predictions("ResDM") / "timing.json", {"seconds": 3.5, "seconds_per_session": 0.5, "steps": 5})
    index["sex"] = index.groupby("person")["sex"].transform("first")
    rows = [
        EMPTY | {name: row[name] for name in ("person", "session", "age", "sex")} | {"t1w": f"{number}_t1.nii"}
        | {"tau": f"{number}_tau.nii", "tau_tracer": "18FAV1451", "tau_days": 10.0 + number, "amyloid_centiloid": 50.0}
        for number, row in enumerate(index.to_dict("records"))
    ]  # fmt: skip
    write_manifest(pd.DataFrame(rows[:5]), config.manifest)
    return config


def table2(config) -> Table:
    return run_cells("04", config, without=PICTURES)["table"]


@pytest.fixture(scope="module")
def second(config) -> Table:
    return table2(config)


def test_table2_is_tidy(config, second):
    frame = second.frame
    assert present_methods(config) == NAMES == list(dict.fromkeys(frame["method"]))
    assert list(frame)[:4] == KEYS
    assert not frame.duplicated(KEYS).any()
    assert len(frame) == 4 * 2 * 2 * 3
    counts = frame.groupby("tracer")[["n", "sessions"]].agg(["min", "max"])  # people, and their visits
    assert counts.to_numpy().tolist() == [[6, 6, 7, 7], [5, 5, 6, 6]]
    printed = (frame["region"] == "whole") & frame["method"].isin(["ResDM", "DDPM"])
    assert (frame["paper"].notna() == printed).all()
    paths = [config.figures / f"table2{suffix}" for suffix in (".csv", ".md", ".tex", ".json")]
    before = [path.read_bytes() for path in paths]
    again = table2(config)
    assert [path.read_bytes() for path in paths] == before
    stored = pd.read_csv(paths[0])
    assert list(stored) == list(again.frame)
    assert stored["mean"].to_numpy() == pytest.approx(again.frame["mean"].to_numpy(), rel=1e-5)


def test_intervals_and_differences_are_those_of_people(config, second):
    scores = read_scores(config, NAMES).query("tracer == 'tau' and region == 'brain'")
    people = scores.groupby(["method", "person"])["psnr"].mean()
    rows = second.frame.query("tracer == 'tau' and region == 'brain' and metric == 'psnr'").set_index("method")
    for method, row in rows.iterrows():
        values = people[method].to_numpy()
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(interval(values, seed=config.seed))
        if method != "ResDM":
            test = paired_test(values, people["ResDM"].to_numpy(), seed=config.seed)
            found = row[["difference", "difference_low", "difference_high", "rank_biserial"]].tolist()
            assert found == pytest.approx([test.difference, test.low, test.high, test.rank_biserial])
    assert np.isnan(rows.loc["ResDM", ["p", "difference"]].astype(float)).all()


def test_people_must_be_the_same(config):
    path = config.predictions("DDPM") / "scores.csv"
    stored = path.read_text()
    try:
        scores = pd.read_csv(path)
        write_csv(path, scores[scores["person"] != "sub-0003"])
        with pytest.raises(ValueError, match=r"'DDPM' and 'ResDM'.*sub-0003"):
            read_trainings(config, ["DDPM", "ResDM"])
    finally:
        path.write_text(stored)


def test_any_set_of_methods(config, tmp_path):
    for name in ("regression", "ResDM"):
        part = dataclasses.replace(make_cohort(tmp_path / name, {name: 0.4})[0], methods={name: MethodConfig("x")})
        score_method(part, name)
        table = table2(part)
        assert set(table.frame["method"]) == {name, "template"}
        assert table.frame["p"].isna().all() == (name != "ResDM")
        assert ("No test: it needs ResDM" in table.markdown()) == (name != "ResDM")
    without = dataclasses.replace(part, methods={"regression": MethodConfig("x")})
    assert present_methods(without) == ["template"], "what a removed method left behind is no row"
    with pytest.raises(ValueError, match="no method has scores"):
        read_trainings(make_config(tmp_path), [])


def test_costs(config, second):
    row = costs(config, ["ResDM", "template"]).set_index("method")
    assert row.loc["ResDM"].dropna().to_dict() == {
        "parameters": 29_200_000, "seconds_per_volume": 0.25, "training_seconds": 120.5, "peak_memory_gib": 3,
        "sampling_steps": 5,
    }  # fmt: skip
    assert row.loc["template"].isna().all()
    assert (second.frame.loc[second.frame["method"] == "ResDM", "parameters"] == 29_200_000).all()
    assert "| 29.20 | – | 0.25 | 120 | 3.00 | 5 |" in second.markdown()


def test_markdown(second):
    text = second.markdown()
    assert text.startswith(f"## Table 2: Quantitative evaluation of the synthetic PET ({NOTICE})\n")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(tables) == 5  # two tracers, whole grid, paper, cost; no share without a ceiling
    assert "<br>" not in text  # one line per cell
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| Method | MAE (%) ↓ | Δ to ResDM | PSNR (dB) ↑ | Δ to ResDM | SSIM (%) ↑ | Δ to ResDM |" in tables[1]
    assert "26.38 ± 2.18" in tables[3]
    assert "regression" not in tables[3]  # not in the paper
    assert [table.count("**") for table in tables[:4]] == [2 * 3, 2 * 3, 2 * 6, 0]  # one best cell per column
    row = second.frame.set_index(KEYS).loc[("DDPM", "tau", "brain", "psnr")]
    shown = with_interval(row["difference"], row["difference_low"], row["difference_high"], p=row["p"])
    assert f"| {shown} |" in tables[1]


# ── rows beside the paper's ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A profile with controls, a ceiling (almost no blur), a row below the template and repeated trainings."""
    blurs = {"ResDM": 0.3, "ResDM@seed1": 0.5, "DDPM": 0.4, "Pix2Pix": 3.0, "linear": 0.45, "demographics": 0.48}
    config, _ = make_cohort(tmp_path_factory.mktemp("full"), blurs | {"ceiling": 0.1})
    resdm, silent = ResidualDiffusionConfig(), PriorConfig(fields=("sex",))
    methods = {"ResDM": resdm, "ResDM@seed1": dataclasses.replace(resdm, seed=1)}
    methods |= {"DDPM": DDPMConfig(labels=("sex", "age")), "Pix2Pix": Pix2PixConfig(), "linear": LinearConfig()}
    methods |= {"demographics": DemographicsConfig(), "regression": RegressionConfig(prior=silent)}
    config = dataclasses.replace(config, methods=methods)
    for method in (*blurs, "ceiling", "template"):
        score_method(config, method)
    return config


@pytest.fixture(scope="module")
def full_table(full) -> Table:
    return table2(full)


ROWS = ["Pix2Pix", "DDPM", "ResDM", "linear", "demographics", "template", "ceiling"]


def brain(frame, method, tracer="tau", metric="psnr"):
    return frame.set_index(KEYS).loc[(method, tracer, "brain", metric)]


def test_controls_follow_the_papers_methods_with_trainings_in_one_row_and_their_inputs(full, full_table, second):
    assert present_methods(full) == ROWS == list(dict.fromkeys(full_table.frame["method"]))
    assert brain(full_table.frame, "ResDM")["trainings"] == 2
    assert (full_table.frame.loc[full_table.frame["method"] != "ResDM", "trainings"] == 1).all()
    expected = dict.fromkeys(("ResDM", "DDPM", "linear", "demographics"), "age, sex") | {"regression": "sex"}
    expected |= dict.fromkeys(("Pix2Pix", "template"), "–") | {"ceiling": "causes, age, sex"}
    assert {name: known_inputs(full, name) for name in expected} == expected
    assert "| DDPM | age, sex |" in full_table.markdown()
    (note,) = [note for note in full_table.notes if note.startswith("Below the mean template")]
    r = regional_comparison(full)[1].query("method == 'Pix2Pix'")["r"].mean()
    assert f"PSNR inside the brain, for both tracers: Pix2Pix ({r:.2f}). In brackets: correlation" in note
    values = {"n": "3", "tested": True, "samplers": [], "masked": True, "trainings": ""}
    start = "Below the mean template in PSNR inside the brain, for both tracers:"
    assert f"{start} A, B." in notes("table2", below={"A": None, "B": None}, **values)  # volumes without SUVR
    assert any(line.startswith(f"{start} A (−0.20). In") for line in notes("table2", below={"A": -0.2}, **values))
    assert "Below" not in second.markdown()


def test_share_of_the_way_from_template_to_ceiling(full_table, second):
    frame = full_table.frame
    for metric in ("mae", "psnr", "ssim"):
        low, high, mean = (brain(frame, name, metric=metric)["mean"] for name in ("template", "ceiling", "DDPM"))
        assert brain(frame, "DDPM", metric=metric)["share"] == pytest.approx((mean - low) / (high - low))
        assert 0 < brain(frame, "DDPM", metric=metric)["share"] < 1
        assert brain(frame, "template", metric=metric)["share"] == 0
        assert brain(frame, "ceiling", metric=metric)["share"] == 1
    text = full_table.markdown()
    assert f"| {100 * brain(frame, 'DDPM')['share']:.0f} |" in text
    assert "| template | 0 | 0 |" in text
    assert not [line for line in text.splitlines() if line.startswith("| ceiling |") and "**" in line]
    assert second.frame["share"].isna().all()


def test_table2_is_recomputable_from_scores_and_scores_from_volumes(full, full_table):
    """By pandas, scipy and scikit-image alone, from the files that the suite leaves."""
    frame = full_table.frame
    stored = {p.parents[1].name: pd.read_csv(p) for p in (full.work / "predictions").glob("*/factual/scores.csv")}
    people = {
        name: scores.query("region == 'brain'").groupby(["tracer", "person"])[["mae", "psnr", "ssim"]].mean()
        for name, scores in stored.items()
    }
    people["ResDM"] = (people["ResDM"] + people.pop("ResDM@seed1")) / 2
    for tracer in ("amyloid", "tau"):
        for metric, scale in (("mae", 100), ("psnr", 1), ("ssim", 100)):
            values = {name: scale * table.loc[tracer, metric] for name, table in people.items()}
            p = {n: stats.wilcoxon(v - values["ResDM"]).pvalue for n, v in values.items() if n != "ResDM"}
            holm = dict(zip(sorted(p, key=p.get), np.maximum.accumulate(sorted(p.values()) * np.arange(len(p), 0, -1)),
                            strict=True))  # fmt: skip
            for name, column in values.items():
                row = brain(frame, name, tracer, metric)
                assert (row["mean"], row["std"]) == pytest.approx((column.mean(), column.std()))
                if name != "ResDM":
                    assert row["p"] == pytest.approx(min(holm[name], 1.0))

    mask = mni_map("brain", GRID)
    for row in stored["DDPM"].sample(6, random_state=0).to_dict("records"):
        label = LABELS[row["tracer"]]
        real, made = (nib.load(image_path(folder, f"{row['person']}_{row['session']}", kind, label)).get_fdata()
                      for folder, kind in ((full.volumes, "preproc"), (full.predictions("DDPM"), "synth")))  # fmt: skip
        similarity, image = structural_similarity(real, made, data_range=1, win_size=7, full=True)
        if row["region"] == "brain":
            real, made, similarity = real[mask], made[mask], image[mask].mean()
        expected = (np.abs(made - real).mean(), peak_signal_noise_ratio(real, made, data_range=1), similarity)
        assert (row["mae"], row["psnr"], row["ssim"]) == pytest.approx(expected, rel=1e-6)


# ── the page ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("widths", [None, {"Method": 0.2}])
def test_latex_is_well_formed(second, full_table, widths):
    for table in (second, full_table):
        text = dataclasses.replace(table, widths=widths).latex()
        check_latex(text)
        assert NOTICE in text


def test_latex_escapes():
    block = Block("a_b & 5 %", (("", "x#"), ("g", "~^\\{}$")), (("[1, 2]", "β ± −3, p < 0.001"),))
    text = Table("t", "a", "", pd.DataFrame(), (block,)).latex()
    assert r"a\_b \& 5 \%" in text
    assert r"x\# & \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\$ \\" in text
    assert r"{}[1, 2] & $\beta$ $\pm$ $-$3, p $<$ 0.001 \\" in text
    assert r" & \multicolumn{1}{c}{g} \\" in text
    assert r"\cmidrule(lr){2-2}" in text
    check_latex(text)
    text = Table("t", "Müller, Mu\u0308ller, Besançon, α", "", pd.DataFrame(), (block,)).latex()
    assert r"\caption{M\"{u}ller, M\"{u}ller, Besan\c{c}on, $\alpha$" in text
    with pytest.raises(ValueError, match="no LaTeX for"):
        Table("t", "☂", "", pd.DataFrame(), (block,)).latex()


def test_pivot_marks_the_best_and_leaves_empty_columns_out():
    frame = pd.DataFrame({"method": list("abab"), "metric": ["mae", "mae", "psnr", "psnr"], "mean": [1.0, 2, 3, 4]})
    frame["text"], frame["other"] = ["1", "2", "3", "4"], ["–", "–", "x", np.nan]
    frame["best"] = is_best(frame, ["metric"], without=())
    block = pivot(frame, "method", ["metric"], {"{}": "text", "Δ {}": "other"}, best="best", names={"a": "A"})
    assert [label for _, label in block.columns] == ["Method", "MAE (%) ↓", "PSNR (dB) ↑", "Δ PSNR (dB) ↑"]
    assert block.rows == (("A", "1", "3", "x"), ("b", "2", "4", "–"))
    assert block.best == {(0, 1), (1, 2)}  # the smallest error, the largest PSNR
    assert is_best(frame, ["metric"], without=("b",)).tolist() == [True, False, True, False]
    assert is_best(frame.replace("psnr", "brier"), ["metric"]).tolist() == [True, False, True, False]  # a loss


def test_printed_numbers():
    assert [number(v, 2) for v in (1.005, -0.5, -0.004, np.nan, -np.inf, np.inf)] == [
        "1.00", "−0.50", "0.00", "–", "−∞", "∞",
    ]  # fmt: skip
    assert [p_value(v) for v in (0.0004, 0.0316, 1.0, np.nan)] == ["p < 0.001", "p = 0.032", "p = 1.000", ""]
    assert with_interval(-1.02, -1.42, -0.001, p=0.01) == "−1.02 [−1.42, 0.00] *"
    assert [with_interval(1.0, np.nan, np.nan, 1), with_interval(np.nan, np.nan, np.nan)] == ["1.0", "–"]
    cells = [{"mean": 1.0, "std": 2.0}, {"median": 3, "max": 4}, {"female": 5, "male": 6}, {"18FAV45": 7, "18FFBB": 8}]
    texts = ["1.00 ± 2.00", "3 (4)", "5/6", "18FAV45 7, 18FFBB 8"]
    assert [demographic(pd.Series(values)) for values in cells] == texts


# ── table 1 ───────────────────────────────────────────────────────────────────────────────────────


def table1(sessions, config) -> Table:
    return run_cells("00", config, "00-02", "00-12", "00-08", sessions=sessions)["table"]


def values_of(table):
    return table.frame.set_index(["characteristic", "diagnosis", "statistic"])["value"]


@pytest.fixture(scope="module")
def index(config):
    return read_index(config, None)


def test_table1(config, index):
    table = table1(index, config)
    values = values_of(table)
    counts = {name: values[name, "all", "count"] for name in ("sessions", "people", "sets")}
    assert counts == {"sessions": 9, "people": 8, "sets": 8}  # sub-0001 has no tau PET
    ages = index.loc[index["diagnosis"] == "AD", "age"]
    assert values.loc[("age", "AD", ["mean", "std"])].tolist() == pytest.approx([ages.mean(), ages.std(ddof=1)])
    paper = table.frame.set_index(["characteristic", "diagnosis", "statistic"])["paper"]
    assert (paper["age", "AD", "mean"], paper["sets", "MCI", "count"]) == (74.58, 656)
    sexes = [(index["sex"] == "F").sum(), (index["sex"] == "M").sum()]
    assert values.loc[("sex", "all", ["female", "male"])].tolist() == sexes
    text = table.markdown()
    assert NOTICE in text.splitlines()[0]
    for part in ("| Sex (female/male) |", "85/125", "74.58 ± 8.09", "1474"):
        assert part in text
    check_latex(table.latex())


def test_table1_has_groups_for_other_and_missing_diagnoses(config, index):
    other = index.assign(diagnosis=[None, "SMC", *index["diagnosis"][2:]])
    table = table1(other, dataclasses.replace(config, cohort=CohortConfig(kind="adni"), privacy="individual"))
    assert list(dict.fromkeys(table.frame["diagnosis"])) == ["AD", "MCI", "CN", "SMC", "unlabelled", "all"]
    assert table.markdown().startswith("## Table 1: Demographics of the cohort\n")  # ADNI needs no notice
    nobody = table1(index.assign(diagnosis=""), config)  # as the Dallas study's: the paper's groups beside everybody
    assert set(nobody.frame["diagnosis"]) == {"all"}
    head, _, *rows = [line for line in nobody.markdown().splitlines() if line.startswith("|")]
    assert head == "|  | all here | AD paper | MCI paper | CN paper |"
    ends = "| 74.58 ± 8.09 | 71.66 ± 7.48 | 71.37 ± 6.63 |"
    assert [row for row in rows if row.startswith("| Age | ") and row.endswith(ends)]


def test_table1_shows_nobody_alone_where_privacy_is_aggregate(config, index):
    sessions = index.assign(amyloid_days=range(9), diagnosis=["AD"] * 2 + ["CN"] * 7)
    shown, hidden = (values_of(table1(sessions, dataclasses.replace(config, privacy=privacy)))
                     for privacy in ("individual", "aggregate"))  # fmt: skip
    assert shown["age", "AD", "mean"] == pytest.approx(index["age"][:2].mean())
    assert shown["amyloid_days", "all", "max"] == 8
    gone = [("age", "AD", "mean"), ("age", "AD", "std"), ("amyloid_days", "AD", "median"),
            ("amyloid_days", "all", "max")]  # fmt: skip
    assert hidden[gone].isna().all()
    known = hidden.dropna().index
    assert ("age", "CN", "mean") in known
    pd.testing.assert_series_equal(hidden[known], shown[known])


def test_table1_has_tracers_days_and_centiloid_where_they_are_known(config, index):
    plain = table1(index, config).markdown()
    assert "| Aβ tracers | 18FAV45 3 | – |" in plain
    assert not re.search("Days|Centiloid", plain)
    days = [-400, 10, 20, 30, np.nan, np.nan, np.nan, np.nan, np.nan]
    known = index.assign(amyloid_days=days, tau_days=np.nan, amyloid_centiloid=[25.0, *[np.nan] * 8])
    known.loc[0, "amyloid_tracer"] = "18FFBB"
    table = table1(known, config)
    values = values_of(table)
    assert values.loc[("amyloid_days", "all", ["median", "max"])].tolist() == [25, 400]  # without signs
    assert values.loc[("amyloid_tracer", "all", ["18FAV45", "18FFBB"])].tolist() == [8, 1]
    assert values["amyloid_tracer", "AD", "18FFBB"] == 0
    text = table.markdown()
    for part in ("| Days T1 to Aβ-PET, median (max) |", "| 25 (400) |", "25.0 ± –", "18FAV45 8, 18FFBB 1"):
        assert part in text
    assert "Days T1 to tau" not in text  # nobody has one
    check_latex(table.latex())
    sessions = cohort_sessions(config)  # days and Centiloid come from the manifest
    assert sessions["tau_days"].tolist()[:5] == [10, 11, 12, 13, 14]
    assert (len(sessions), sessions["tau_days"].isna().sum()) == (len(index), 4)
    assert sessions["amyloid_suvr"].tolist() == index["amyloid_suvr"].tolist()  # as measured
