"""Longitudinal change: planted changes come back, and a method that copies, halves or ignores them is told apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from notebook_cells import check_latex, check_texts, run_cells, texts
from stored_cohort import GRID, LABELS, RANGES, make_config, save

from resdm.io import write_csv
from resdm.settings import MethodConfig
from resdm_suite.evaluation.image_quality import score_method
from resdm_suite.evaluation.longitudinal import compare_changes, repeated_visits
from resdm_suite.paths import synthetic_path

CHANGES = np.array([0.00, 0.02, 0.05, -0.01, 0.03, 0.08])  # SUVR a year, of the test people
SHARES = {"ResDM": 1.0, "linear": 0.0, "demographics": 0.5}  # of the change that a method shows
VISITS = {0: (0.0, 1.0), 1: (0.0, 1.0, 3.0)}  # years; every other person comes three times


def flat(tracer: str, suvr: float) -> np.ndarray:
    low, high = RANGES[tracer]
    return np.full(GRID.shape, (suvr - low) / (high - low))


@pytest.fixture
def config(tmp_path):
    """Six test people, of whom the last has one tau PET, three training people, and one who came once."""
    methods = {name: MethodConfig("x") for name in SHARES}
    config, rows, truth = make_config(tmp_path, methods=methods), [], []
    people = [*((f"sub-{i}", "test", change) for i, change in enumerate(CHANGES)),
              *((f"sub-1{i}", "train", change) for i, change in enumerate((0.01, 0.02, 0.06))),
              ("sub-20", "test", 0.5)]  # fmt: skip
    for number, (who, split, change) in enumerate(people):
        for visit, years in enumerate(VISITS[number % 2] if who != "sub-20" else (0.0,)):
            key = {"person": who, "session": f"ses-M{visit:03d}"}
            row = key | {"split": split, "age": 70 + number + years, "sex": "F"}
            for tracer, label in LABELS.items():
                present = not (who == "sub-5" and tracer == "tau" and visit)
                path = f"{who}/{row['session']}_{tracer}.nii.gz"
                row |= {f"present_{tracer}": int(present), f"{tracer}_tracer": label if present else "", tracer: path}
                save(config.volumes / path, flat(tracer, 1.2 + change * years), suvr_range=RANGES[tracer])
                for method, share in SHARES.items() if split == "test" else ():
                    made = flat(tracer, 1.1 + share * change * years)
                    save(synthetic_path(config.predictions(method), who, row["session"], label), made)
            rows.append(row)
            truth.append(key | {f"{tracer}_suvr": 1.2 + 2 * change * years for tracer in LABELS})
    write_csv(config.work / "truth" / "people.csv", pd.DataFrame(truth))
    for tracer in LABELS:
        save(config.volumes / f"template_{tracer}.nii.gz", flat(tracer, 1.3))
    store(config, pd.DataFrame(rows))
    return config


def store(config, index) -> None:
    """The sessions of a cohort, with scores of every method."""
    write_csv(config.volumes / "index.csv", index)
    for method in SHARES:
        score_method(config, method)


def test_planted_changes_come_back(config):
    found = run_cells("23", config)
    frame = found["frame"].set_index(["reference", "tracer", "source"]).sort_index()
    for tracer, changes in (("amyloid", CHANGES), ("tau", CHANGES[:-1])):  # sub-5 has one tau PET
        rows = frame.loc["real", tracer]
        assert set(rows["n"]) == {len(changes)}
        for method, share in SHARES.items():
            row = rows.loc[method]
            mean, size = changes.mean(), np.abs(changes).mean()
            expected = [share * mean, (share - 1) * mean, (1 - share) * size, share * size]
            assert row[["change", "bias", "error", "gain"]].tolist() == pytest.approx(expected, abs=1e-6)
            assert row["slope"] == pytest.approx(share, abs=1e-5)
        assert rows.loc[["ResDM", "demographics"], "r"].tolist() == pytest.approx([1, 1], abs=1e-6)
        assert np.isnan(rows.loc[["linear", "template"], "r"]).all()
        assert rows.loc["template", ["change", "gain", "slope"]].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
        assert rows.loc["training", "change"] == pytest.approx(0.03, abs=1e-6), "mean of the training people's"
        planted = frame.loc["planted", tracer]
        assert planted.loc["real", "slope"] == pytest.approx(0.5, abs=1e-5), "the truth is twice that"
        assert planted.loc["ResDM", "r"] == pytest.approx(1, abs=1e-6)
    text = found["table"].markdown()
    assert "1.0 to 3.0 years apart" in text
    assert "against the planted change" in text
    check_latex(found["table"].latex())
    check_texts(found["figure"])


def test_an_interval_is_over_people_and_noise_has_no_r():
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 0.02, (2, 200))
    values = pd.DataFrame({"source": "x", "person": [f"sub-{i}" for i in range(200)], "real": draws[0]})
    row = compare_changes(values.assign(synthetic=draws[1]), ["source"], seed=0).iloc[0]
    assert row["r_low"] < 0 < row["r_high"]
    assert row["gain_high"] < 0, "noise in place of no change costs"
    half = 1.96 * np.abs(draws[1] - draws[0]).std() / np.sqrt(200)
    assert (row["error_high"] - row["error_low"]) / 2 == pytest.approx(half, rel=0.1)
    rounding = values.assign(synthetic=0.01 + 1e-5 * draws[1])
    assert np.isnan(compare_changes(rounding, ["source"], seed=0)["r"].iloc[0]), "everyone has the same change"
    assert compare_changes(values.iloc[:0].assign(synthetic=0.0), ["source"], seed=0).empty


def test_few_people_are_not_shown_where_single_people_may_not_be(config):
    private = dataclasses.replace(config, privacy="aggregate")
    assert set(run_cells("23", private)["frame"]["n"]) == {5, 6}
    index = pd.read_csv(config.volumes / "index.csv")
    store(config, index[~index["person"].isin(["sub-0", "sub-1"])])
    assert set(run_cells("23", config)["frame"]["n"]) == {3, 4}
    found = run_cells("23", private)
    assert found["frame"].empty
    assert "fewer than 5 test people have two or more visits" in found["table"].markdown()
    assert any("Too few people have several visits" in text for text in texts(found["figure"]))


def test_one_visit_each_gives_an_empty_table(config):
    store(config, pd.read_csv(config.volumes / "index.csv").drop_duplicates("person"))
    assert repeated_visits(config, SHARES).empty
    found = run_cells("23", config)
    assert found["frame"].empty
    check_latex(found["table"].latex())
    assert (config.figures / "longitudinal.png").is_file()
