"""Tables 1 and 2: the tidy contract, every number recomputed, and what is printed."""

from __future__ import annotations

import dataclasses
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
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
from resdm_suite.anatomy import mni_map
from resdm_suite.cohorts.manifest import EMPTY, write_manifest
from resdm_suite.evaluation.image_quality import read_index, read_scores, score_method
from resdm_suite.evaluation.statistics import interval
from resdm_suite.profiles import CohortConfig
from resdm_suite.reporting.provenance import provenance
from resdm_suite.reporting.tables import (
    Block,
    Table,
    cohort_sessions,
    costs,
    number,
    p_value,
    present_methods,
    quality,
    read_paper,
    read_trainings,
    save_table,
    table1,
    table2,
    told,
)

NOTICE = "phantom data: not a reproduction of the paper's numbers"
METHODS = {"ResDM": 0.3, "DDPM": 0.5, "regression": 0.4}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config, _ = make_cohort(tmp_path_factory.mktemp("cohort"), METHODS)
    for method in (*METHODS, "template"):
        score_method(config, method)
    timing = {"parameters": 29_200_000, "seconds": 120.5, "peak_memory_bytes": 3 * 2**30}
    write_json(config.model("ResDM") / "timing.json", timing)
    write_json(config.predictions("ResDM") / "timing.json", {"seconds": 3.5, "seconds_per_session": 0.5, "steps": 5})
    return config


@pytest.fixture(scope="module")
def second(config) -> Table:
    return table2(config)


def test_table2_is_tidy(config, second):
    frame = second.frame
    assert present_methods(config) == ["DDPM", "ResDM", "regression", "template"]
    assert list(dict.fromkeys(frame["method"])) == ["DDPM", "ResDM", "regression", "template"]
    keys = ["method", "tracer", "region", "metric"]
    assert list(frame)[:4] == keys
    assert not frame.duplicated(keys).any()
    assert len(frame) == 4 * 2 * 2 * 3
    assert {name: set(frame[name]) for name in keys[1:]} == {
        "tracer": {"amyloid", "tau"},
        "region": {"whole", "brain"},
        "metric": {"mae", "psnr", "ssim"},
    }
    assert (frame.groupby("tracer")["n"].unique().map(list).to_dict()) == {"amyloid": [6], "tau": [5]}  # people
    assert (frame.groupby("tracer")["sessions"].unique().map(list).to_dict()) == {"amyloid": [7], "tau": [6]}


def test_paper_values_stand_where_the_paper_has_them(second):
    frame = second.frame
    printed = read_paper(2).set_index(["method", "tracer", "metric"])
    has = (frame["region"] == "whole") & frame["method"].isin(["ResDM", "DDPM"])
    assert (frame["paper"].notna() == has).all()
    for row in frame[has].to_dict("records"):
        values = printed.loc[(row["method"], row["tracer"], row["metric"])]
        assert (row["paper"], row["paper_std"]) == (values["mean"], values["std"])


@pytest.mark.parametrize(("metric", "scale"), [("mae", 100), ("psnr", 1), ("ssim", 100)])
def test_every_number_is_recomputable_from_scores(config, second, metric, scale):
    scores = read_scores(config, ["DDPM", "ResDM", "regression", "template"])
    scores = scores[(scores["tracer"] == "tau") & (scores["region"] == "brain")]
    people = scores.groupby(["method", "person"])[metric].mean() * scale
    frame = second.frame
    rows = frame[(frame["tracer"] == "tau") & (frame["region"] == "brain") & (frame["metric"] == metric)]
    rows = rows.set_index("method")
    p = {}
    for method in ("DDPM", "ResDM", "regression", "template"):
        values, row = people[method].to_numpy(), rows.loc[method]
        assert row["mean"] == pytest.approx(values.mean())
        assert row["std"] == pytest.approx(values.std(ddof=1))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(interval(values, seed=config.seed))
        if method != "ResDM":
            difference = values - people["ResDM"].to_numpy()
            assert row["difference"] == pytest.approx(difference.mean())
            p[method] = stats.wilcoxon(difference).pvalue
    assert np.isnan(rows.loc["ResDM", ["p", "difference"]].astype(float)).all()
    running = 0.0
    for place, method in enumerate(sorted(p, key=p.get)):
        running = max(running, min(1.0, (3 - place) * p[method]))
        assert rows.loc[method, "p"] == pytest.approx(running)


def test_people_must_be_the_same(config):
    scores = read_scores(config, ["ResDM", "DDPM"])
    fewer = scores[~((scores["method"] == "DDPM") & (scores["person"] == "sub-0003"))]
    with pytest.raises(ValueError, match=r"'DDPM' and 'ResDM'.*sub-0003"):
        quality(fewer, seed=0)


def test_any_set_of_methods(config, tmp_path):
    alone = table2(config, ["regression", "template"])
    assert alone.frame["p"].isna().all()
    assert "No test: it needs ResDM" in alone.markdown()
    assert len(table2(config, ["ResDM"]).frame) == 12
    with pytest.raises(ValueError, match="no method has scores"):
        table2(make_config(tmp_path))


def test_infinite_psnr_is_printed_as_such(config):
    scores = read_scores(config, ["ResDM", "template"])
    scores.loc[scores["method"] == "ResDM", "psnr"] = np.inf
    frame = quality(scores, seed=0)
    perfect = frame[(frame["method"] == "ResDM") & (frame["metric"] == "psnr")]
    assert np.isinf(perfect["mean"]).all()
    assert number(perfect["mean"].iloc[0], 2) == "∞"


def test_costs(config, second):
    row = costs(config, ["ResDM", "template"]).set_index("method")
    assert row.loc["ResDM"].dropna().to_dict() == {
        "parameters": 29_200_000, "seconds_per_volume": 0.25, "training_seconds": 120.5, "peak_memory_gib": 3,
        "sampling_steps": 5,
    }  # fmt: skip
    assert row.loc["template"].isna().all()
    of_resdm = second.frame[second.frame["method"] == "ResDM"]
    assert (of_resdm["parameters"] == 29_200_000).all()
    assert "| ResDM | 29.20 | – | 0.25 | 120 | 3.00 | 5 |" in second.markdown()


def test_markdown(second):
    text = second.markdown()
    assert text.startswith(f"## Table 2: Quantitative evaluation of the synthetic PET ({NOTICE})\n")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(tables) == 6  # whole, paper, brain, intervals, differences, cost
    assert "<br>" not in text  # one line a cell
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "Aβ-PET MAE (%) ↓" in text
    assert "tau-PET PSNR (dB) ↑" in text
    assert "26.38 ± 2.18" in tables[1]
    assert "regression" not in tables[1]  # the paper has it not
    assert [table.count("**") for table in tables[:3]] == [2 * 6, 0, 2 * 6]  # one best cell a column
    row = second.frame.set_index(["method", "tracer", "region", "metric"]).loc[("DDPM", "tau", "brain", "psnr")]
    low, high = (f"{row[f'difference_{end}']:.2f}".replace("-", "−") for end in ("low", "high"))
    assert f"{row['difference']:.2f} [{low}, {high}], p = {row['p']:.3f}".replace("-", "−") in tables[4]
    assert "PSNR that inside the brain plus a constant" in text
    assert second._repr_markdown_() == text


# ── rows beside the paper's ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A profile with controls, a ceiling (almost no blur), a row below the template and repeated trainings."""
    blurs = {"ResDM": 0.3, "ResDM@seed1": 0.5, "DDPM": 0.4, "Pix2Pix": 3.0, "linear": 0.45, "demographics": 0.48}
    config, _ = make_cohort(tmp_path_factory.mktemp("full"), blurs | {"ceiling": 0.1})
    resdm, silent = ResidualDiffusionConfig(), PriorConfig(fields=("sex",))
    methods = {
        "ResDM": resdm,
        "ResDM@seed1": dataclasses.replace(resdm, seed=1),
        "DDPM": DDPMConfig(labels=("sex", "age")),
    }
    methods |= {"Pix2Pix": Pix2PixConfig(), "linear": LinearConfig(), "demographics": DemographicsConfig()}
    methods |= {"regression": RegressionConfig(prior=silent)}
    config = dataclasses.replace(config, methods=methods)
    for method in (*blurs, "ceiling", "template"):
        score_method(config, method)
    return config


ROWS = ["Pix2Pix", "DDPM", "ResDM", "linear", "demographics", "template", "ceiling"]


def brain(frame, method, tracer="tau", metric="psnr"):
    return frame.set_index(["method", "tracer", "region", "metric"]).loc[(method, tracer, "brain", metric)]


def test_controls_follow_the_papers_methods_and_trainings_are_one_row(full):
    assert present_methods(full) == ROWS
    frame = table2(full).frame
    assert list(dict.fromkeys(frame["method"])) == ROWS
    assert brain(frame, "ResDM")["trainings"] == 2
    assert (frame.loc[frame["method"] != "ResDM", "trainings"] == 1).all()


def test_what_a_method_is_told_comes_from_its_settings(full):
    found = {name: told(full, name) for name in [*ROWS, "regression"]}
    both = ("ResDM", "DDPM", "linear", "demographics")
    expected = dict.fromkeys(both, "age, sex") | dict.fromkeys(("Pix2Pix", "template"), "–")
    assert found == expected | {"regression": "sex", "ceiling": "causes, age, sex"}
    assert "| DDPM | age, sex |" in table2(full).markdown()


def test_share_of_the_way_from_template_to_ceiling(full):
    table = table2(full)
    for metric in ("mae", "psnr", "ssim"):
        low, high, mean = (brain(table.frame, name, metric=metric)["mean"] for name in ("template", "ceiling", "DDPM"))
        share = brain(table.frame, "DDPM", metric=metric)["share"]
        assert share == pytest.approx((mean - low) / (high - low))
        assert 0 < share < 1
        assert brain(table.frame, "template", metric=metric)["share"] == 0
        assert brain(table.frame, "ceiling", metric=metric)["share"] == 1
    text = table.markdown()
    assert f"{100 * brain(table.frame, 'DDPM')['share']:.0f} %" in text
    assert "| template | 0 % | 0 % |" in text
    assert not [line for line in text.splitlines() if line.startswith("| ceiling |") and "**" in line]
    without = table2(full, [name for name in ROWS if name != "ceiling"])
    assert without.frame["share"].isna().all()
    assert "share of the way" not in without.markdown()


def test_a_method_below_the_template_is_named_with_its_numbers(full):
    frame = table2(full).frame
    numbers = {
        name: "/".join(f"{brain(frame, name, tracer)['mean']:.2f}" for tracer in ("amyloid", "tau"))
        for name in ("template", "Pix2Pix")
    }
    note = f"Below the mean template ({numbers['template']} dB, PSNR inside the brain, Aβ-PET/tau-PET): Pix2Pix "
    assert f"{note}{numbers['Pix2Pix']}." in table2(full).notes
    assert "Below" not in table2(full, ["DDPM", "ResDM", "template"]).markdown()


def test_resdm_against_linear_is_printed(full):
    scores = read_trainings(full, ["ResDM", "linear"])
    people = scores[scores["region"] == "brain"].groupby(["method", "tracer", "person"])["psnr"].mean()
    tested = {}
    for tracer in ("amyloid", "tau"):
        one = (people["ResDM"][tracer] + people["ResDM@seed1"][tracer]) / 2 - people["linear"][tracer]
        tested[tracer] = one.mean(), stats.wilcoxon(one).pvalue
    smaller, larger = sorted(p for _, p in tested.values())
    (note,) = [note for note in table2(full).notes if note.startswith("ResDM − linear")]
    for name, (difference, p) in zip(("Aβ-PET", "tau-PET"), tested.values(), strict=True):
        corrected = min(1.0, 2 * smaller if p == smaller else max(2 * smaller, larger))
        assert re.search(rf"{name} {number(difference, 2)} dB \[[^]]+\], p = {corrected:.3f}", note)


def test_table2_is_recomputable_from_scores_and_scores_from_volumes(full):
    """By pandas, scipy and scikit-image alone, from the files that the suite leaves."""
    frame = table2(full).frame
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
        stem = f"{row['person']}/{row['session']}/pet/{row['person']}_{row['session']}_trc-{label}_space-MNI152_desc-"
        real, made = (
            nib.load(folder / f"{stem}{kind}_pet.nii.gz").get_fdata()
            for folder, kind in ((full.volumes, "preproc"), (full.predictions("DDPM"), "synth"))
        )
        similarity, image = structural_similarity(real, made, data_range=1, win_size=7, full=True)
        if row["region"] == "brain":
            real, made, similarity = real[mask], made[mask], image[mask].mean()
        expected = (np.abs(made - real).mean(), peak_signal_noise_ratio(real, made, data_range=1), similarity)
        assert (row["mae"], row["psnr"], row["ssim"]) == pytest.approx(expected, rel=1e-6)


# ── the page ──────────────────────────────────────────────────────────────────────────────────────


def balanced(text: str) -> bool:
    depth = 0
    for character in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0


def test_latex_is_well_formed(second):
    text = second.latex()
    assert text.isascii()
    assert balanced(text)
    assert NOTICE in re.search(r"\\caption\{(.*)\}\.?\n", text).group(1)
    for name in ("table*", "tabular", "minipage"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") > 0
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, flags=re.S):
        for line in body.splitlines():
            if line.endswith("\\\\"):
                spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + spanned == len(columns)
                assert not line.startswith("[")  # \\ would take it for its argument
        assert not re.search(r"(?<!\\)[%_#]", body)


def test_latex_escapes():
    block = Block("a_b & 5 %", (("", "x#"), ("g", "~^\\{}$")), (("[1, 2]", ("β ± −3", "p < 0.001")),))
    text = Table("t", "a", "", pd.DataFrame(), (block,)).latex()
    assert r"a\_b \& 5 \%" in text
    assert r"x\# & \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\$ \\" in text
    assert r"{}[1, 2] & $\beta$ $\pm$ $-$3 \\" in text
    assert r" & {\scriptsize p $<$ 0.001} \\" in text
    with pytest.raises(ValueError, match="no LaTeX for"):
        Table("t", "☂", "", pd.DataFrame(), (block,)).latex()


def test_printed_numbers():
    assert [number(v, 2) for v in (1.005, -0.5, float("nan"), float("-inf"))] == ["1.00", "−0.50", "–", "−∞"]
    assert [p_value(v) for v in (0.0004, 0.0316, 1.0, float("nan"))] == ["p < 0.001", "p = 0.032", "p = 1.000", ""]


def test_bytes_are_the_same_twice(config, tmp_path):
    for folder in ("a", "b"):
        paths = save_table(table2(config), tmp_path / folder, provenance(config))
    assert [path.name for path in paths] == ["table2.csv", "table2.md", "table2.tex", "table2.json"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    stored = pd.read_csv(tmp_path / "a" / "table2.csv")
    assert list(stored) == list(table2(config).frame)
    assert stored["mean"].to_numpy() == pytest.approx(table2(config).frame["mean"].to_numpy(), rel=1e-5)


def test_table1(config):
    index = read_index(config, None)
    table = table1(index, config)
    values = table.frame.set_index(["characteristic", "diagnosis", "statistic"])
    assert values.loc[("sessions", "all", "count"), "value"] == 9
    assert values.loc[("people", "all", "count"), "value"] == 8
    assert values.loc[("sets", "all", "count"), "value"] == 8  # sub-0001 has no tau PET
    ages = index.loc[index["diagnosis"] == "AD", "age"]
    assert values.loc[("age", "AD", "mean"), "value"] == pytest.approx(ages.mean())
    assert values.loc[("age", "AD", "std"), "value"] == pytest.approx(ages.std(ddof=1))
    assert values.loc[("age", "AD", "mean"), "paper"] == 74.58
    assert values.loc[("sets", "MCI", "count"), "paper"] == 656
    sexes = [values.loc[("sex", "all", word), "value"] for word in ("female", "male")]
    assert sexes == [(index["sex"] == "F").sum(), (index["sex"] == "M").sum()]
    text = table.markdown()
    assert NOTICE in text.splitlines()[0]
    assert "| Sex (female/male) |" in text
    assert "85/125" in text
    assert "74.58 ± 8.09" in text
    assert "1474" in text
    assert balanced(table.latex())


def test_table1_of_a_manifest_with_gaps(config, tmp_path):
    frame = pd.DataFrame(
        {"person": ["a", "b", "b"], "session": ["1", "1", "2"], "sex": ["F", "M", "M"], "age": [60, 70, 72]}
        | {"diagnosis": [None, "CN", "SMC"], "amyloid": ["x.nii", None, "y.nii"], "tau": ["z.nii", "", None]}
    )
    other = dataclasses.replace(config, cohort=CohortConfig(kind="adni"))
    table = table1(frame, other)
    values = table.frame.set_index(["characteristic", "diagnosis", "statistic"])["value"]
    assert list(dict.fromkeys(table.frame["diagnosis"])) == ["CN", "SMC", "unlabelled", "all"]
    assert values["people", "all", "count"] == 2
    assert values["sets", "all", "count"] == 1
    assert np.isnan(values["mmse", "all", "mean"])
    assert table.markdown().startswith("## Table 1: Demographics of the cohort\n")  # ADNI needs no notice
    write_csv(tmp_path / "table1.csv", table.frame)


def test_table1_shows_nobody_alone_where_privacy_is_aggregate(config):
    index = read_index(config, None).assign(amyloid_days=range(9), diagnosis=["AD"] * 2 + ["CN"] * 7)
    shown, hidden = (
        table1(index, dataclasses.replace(config, privacy=privacy)).frame.set_index(
            ["characteristic", "diagnosis", "statistic"]
        )["value"]
        for privacy in ("individual", "aggregate")
    )
    assert shown["age", "AD", "mean"] == pytest.approx(index["age"][:2].mean())
    assert shown["amyloid_days", "all", "max"] == 8
    gone = [
        ("age", "AD", "mean"),
        ("age", "AD", "std"),
        ("amyloid_days", "AD", "median"),
        ("amyloid_days", "all", "max"),
    ]
    assert hidden[gone].isna().all()
    kept = hidden.dropna().index
    assert ("age", "CN", "mean") in kept
    pd.testing.assert_series_equal(hidden[kept], shown[kept])


def test_table1_says_tracers_days_and_centiloid_where_they_are_known(config):
    index = read_index(config, None)
    plain = table1(index, config)
    assert "| Aβ tracers | 18FAV45 3 | – |" in plain.markdown()
    assert not re.search("Days|Centiloid", plain.markdown())
    days = [-400, 10, 20, 30, np.nan, np.nan, np.nan, np.nan, np.nan]
    told = index.assign(amyloid_days=days, tau_days=np.nan, amyloid_centiloid=[25.0, *[np.nan] * 8])
    told.loc[0, "amyloid_tracer"] = "18FFBB"
    table = table1(told, config)
    values = table.frame.set_index(["characteristic", "diagnosis", "statistic"])
    assert values.loc[("amyloid_days", "all", ["median", "max"]), "value"].tolist() == [25, 400]  # without signs
    assert values.loc[("amyloid_days", "all", "max"), "n"] == 4
    assert values.loc[("amyloid_tracer", "all", ["18FAV45", "18FFBB"]), "value"].tolist() == [8, 1]
    assert values.loc[("amyloid_tracer", "AD", "18FFBB"), "value"] == 0
    text = table.markdown()
    assert "| Days T1 to Aβ-PET, median (max) |" in text
    assert "| 25 (400) |" in text
    assert "Days T1 to tau" not in text  # nobody has one
    assert "25.0 ± –" in text
    assert "18FAV45 8<br>18FFBB 1" in text
    assert balanced(table.latex())


def test_table1_without_diagnoses_has_the_papers_groups_beside_everybody(config):
    """As the Dallas study's."""
    table = table1(read_index(config, None).assign(diagnosis=""), config)
    assert set(table.frame["diagnosis"]) == {"all"}
    head, _, *rows = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert head == "|  | all here | AD paper | MCI paper | CN paper |"
    assert rows[0] == "| People | 8 | – | – | – |"
    assert any(
        row.startswith("| Age | ") and row.endswith("| 74.58 ± 8.09 | 71.66 ± 7.48 | 71.37 ± 6.63 |") for row in rows
    )
    assert "Nobody here has a diagnosis" in table.markdown()


def test_table1_takes_days_and_centiloid_from_the_manifest(config):
    index = read_index(config, None)
    rows = [
        EMPTY | {name: row[name] for name in ("person", "session", "age", "sex")} | {"t1w": "a.nii"}
        | {"tau": "b.nii", "tau_tracer": "18FAV1451", "tau_days": 10.0 + number, "amyloid_centiloid": 50.0}
        for number, row in enumerate(index.to_dict("records"))
    ]  # fmt: skip
    write_manifest(pd.DataFrame(rows[:5]), config.manifest)
    try:
        sessions = cohort_sessions(config)
    finally:
        config.manifest.unlink()
    assert len(sessions) == len(index)
    assert sessions["tau_days"].tolist()[:5] == [10, 11, 12, 13, 14]
    assert sessions["tau_days"].isna().sum() == 4
    assert sessions["amyloid_suvr"].tolist() == index["amyloid_suvr"].tolist()  # as measured
