"""Subgroups: a planted difference is found, none where there is none, and small groups are not shown."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from notebook_cells import check_latex, run_cells
from scipy import stats
from stored_cohort import make_cohort
from stored_readings import make_status, store_readings
from tiny_methods import PlainConfig, build, save_profile_model

from resdm.io import write_csv
from resdm_suite.apps.model_card import write_card
from resdm_suite.evaluation.image_quality import score_method
from resdm_suite.evaluation.subgroups import compare_groups, groups_of_test_people, worst_groups
from resdm_suite.profiles import MIN_GROUP_SIZE


def made(difference: float, seed: int, people: int = 48) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A value per person, ``difference`` higher for M, and groups by sex and age."""
    rng = np.random.default_rng(seed)
    who = [f"sub-{i:04d}" for i in range(people)]
    sex = np.array(["F", "M"])[np.arange(people) % 2]
    values = pd.DataFrame({"person": who, "value": rng.normal(size=people) + difference * (sex == "M")})
    age = np.array(["below 65", "65 to 75", "above 75"])[rng.integers(0, 3, people)]
    groups = [pd.DataFrame({"person": who, "axis": axis, "group": of}) for axis, of in (("sex", sex), ("age", age))]
    return values, pd.concat(groups, ignore_index=True)


def test_means_and_the_test_of_two_groups_are_those_of_scipy():
    values, groups = made(0.8, seed=3)
    rows = pd.DataFrame(compare_groups(values, groups, seed=0)).set_index(["axis", "group"])
    parts = [part["value"] for _, part in values.merge(groups[groups["axis"] == "sex"]).groupby("group")]
    assert rows.loc["sex"]["value"].tolist() == pytest.approx([part.mean() for part in parts])
    assert rows.loc[("sex", "F"), "all"] == pytest.approx(values["value"].mean())
    apart = stats.permutation_test(parts, lambda a, b: np.mean(a) - np.mean(b), n_resamples=9999, rng=1)
    assert rows.loc[("sex", "M"), "p"] == pytest.approx(apart.pvalue, abs=0.01)
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()


def test_a_difference_is_found_and_chance_is_none():
    p = {}
    for difference in (0.0, 1.5):
        for seed in range(8):
            rows = pd.DataFrame(compare_groups(*made(difference, seed), seed=0))
            p.setdefault(difference, []).append(rows.drop_duplicates("axis").set_index("axis")["p"])
    null, planted = (pd.DataFrame(values) for values in p.values())
    assert (planted["sex"] < 0.01).all()
    assert (null < 0.05).mean(axis=None) <= 0.125
    assert stats.kstest(null["sex"], "uniform").pvalue > 0.01


def test_the_auc_of_groups_of_other_prevalence():
    """A score that ranks status equally well in both groups, of which one has more positives."""
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sex = np.repeat(["F", "M"], 40)
        label = (np.arange(80) % 4 < np.where(sex == "M", 3, 1)).astype(int)
        values = pd.DataFrame({"person": [f"sub-{i:04d}" for i in range(80)], "label": label})
        values["score_0"] = rng.normal(size=80) + 1.5 * label
        groups = pd.DataFrame({"person": values["person"], "axis": "sex", "group": sex})
        rows = pd.DataFrame(compare_groups(values, groups, seed=0))
        found.append(rows["p"].iloc[0])
        assert rows["value"].between(60, 100).all()
    assert np.sum(np.array(found) < 0.05) <= 1


def test_small_groups_are_left_out():
    values, groups = made(0.0, seed=0)
    few = groups["person"].isin(values["person"][: MIN_GROUP_SIZE - 1]) & (groups["axis"] == "age")
    groups.loc[groups["axis"] == "age", "group"] = "above 75"
    groups.loc[few, "group"] = "below 65"
    rows = pd.DataFrame(compare_groups(values, groups, seed=0))
    assert set(rows["axis"]) == {"sex"}, "an axis of one large group compares nothing"
    labelled = values.assign(label=0, score_0=values["value"])
    labelled.loc[:MIN_GROUP_SIZE, "label"] = 1
    assert list(compare_groups(labelled, groups, seed=0)) == [], "an AUC needs enough people of both classes"


def test_a_birth_cohort_has_no_thirds_of_age(tmp_path):
    config, index = make_cohort(tmp_path, {}, people=12)
    write_csv(config.volumes / "index.csv", index.assign(age=70.0))
    assert "age" not in set(groups_of_test_people(config)["axis"])


def test_a_person_whose_first_session_has_no_pet_of_the_tracer_belongs_to_the_group_of_the_second(tmp_path):
    config, index = make_cohort(tmp_path, {}, people=12)
    person = index[index["split"] == "test"].groupby("person").filter(lambda part: len(part) > 1)["person"].iloc[0]
    first = index[index["person"] == person].index[0]
    index.loc[first, ["present_tau", "tau", "tau_tracer"]] = [0, None, None]
    write_csv(config.volumes / "index.csv", index)
    groups = groups_of_test_people(config).query("person == @person and axis == 'radiotracer'")
    assert groups["tracer"].tolist() == ["amyloid", "tau"]


def test_groups_of_a_cohort(tmp_path):
    config, index = make_cohort(tmp_path, {}, people=12)
    groups = groups_of_test_people(config)
    for tracer, part in groups.groupby("tracer"):
        test = index[(index["split"] == "test") & (index[f"present_{tracer}"] == 1)].drop_duplicates("person")
        counts = part.groupby(["axis", "group"])["person"].nunique()
        assert counts["sex"].to_dict() == test["sex"].value_counts().to_dict()
        assert counts["age"].sum() == len(test)
        assert counts["diagnosis"].to_dict() == test["diagnosis"].value_counts().to_dict()
        assert counts["radiotracer"].sum() == len(test)
    ages = index[index["split"] == "train"]["age"].quantile([1 / 3, 2 / 3]).round(1).tolist()
    assert f"below {ages[0]:g}" in set(groups["group"])
    assert not groups.duplicated(["person", "tracer", "axis"]).any()


def test_worst_is_lowest_or_for_an_error_largest():
    head = {"source": "ResDM", "tracer": "tau", "axis": "sex"}
    rows = [head | {"quantity": quantity, "group": sex, "value": value}
            for quantity in ("psnr", "error", "auc") for sex, value in (("F", 1.0), ("M", 2.0))]  # fmt: skip
    worst = worst_groups(pd.DataFrame(rows), "ResDM").set_index("quantity")["group"]
    assert worst.to_dict() == {"psnr": "F", "error": "M", "auc": "F"}
    assert worst_groups(pd.DataFrame(rows), "linear").empty


def test_the_notebook_fills_the_model_card(tmp_path):
    config, index = make_cohort(tmp_path, {"ResDM": 0.5, "linear": 1.0}, people=12)
    config = dataclasses.replace(config, methods={"ResDM": PlainConfig(), "linear": PlainConfig()})
    for name in config.methods:
        score_method(config, name)
    save_profile_model(config.model("ResDM"), build(config, "ResDM"), config, "ResDM", step=1, epoch=1)
    assert "Subgroups" not in write_card(config, "ResDM").read_text()
    status, folds = make_status({"ResDM": 2.0, "mri": 1.0, "linear": 4.0}, people=12)
    store_readings(config, status=status.merge(index[["person", "session"]]), status_folds=folds)
    table = run_cells("20", config)["table"]
    check_latex(table.latex())
    assert (config.figures / "subgroups.png").is_file()
    assert set(table.frame["axis"]) <= {"sex", "age", "diagnosis", "radiotracer"}
    assert table.frame["n"].min() >= MIN_GROUP_SIZE
    parts = table.frame.query("quantity == 'psnr'").set_index(["tracer", "axis", "group"])
    parts = {source: part["value"] for source, part in parts.groupby("source")}
    gain = parts["ResDM"] - parts["linear"]  # over the same people
    assert parts["ResDM − linear"].to_dict() == pytest.approx(gain.to_dict(), abs=1e-9)
    card = write_card(config, "ResDM").read_text()
    assert "## Subgroups of the test people" in card
    worst = table.frame.query("source == 'ResDM' and quantity == 'psnr' and tracer == 'tau'")
    worst = worst.loc[worst["value"].idxmin()]
    assert f"| {worst['axis']}: {worst['group']} (n = {worst['n']}) | {worst['value']:.1f} [" in card
    score_method(config, "linear")
    path = config.predictions("linear") / "scores.csv"
    path.write_text(path.read_text().replace("0.", "0.0", 1))
    assert "Subgroups" not in write_card(config, "ResDM").read_text(), "of other predictions"
