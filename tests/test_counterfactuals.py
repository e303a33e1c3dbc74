"""Counterfactuals: planted changes are recovered, by region and prompt."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from notebook_cells import draw

from resdm_suite.evaluation.counterfactuals import change_summary, prompt_changes

REGIONS = ("summary", "precuneus", "pons")


def planted(people: int = 24, seed: int = 0) -> pd.DataFrame:
    """SUVR: prompt F adds 0.1 in the precuneus of men, prompt M takes 0.1 from women; age 85 adds 0.05 everywhere."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(people):
        sex = "FM"[i % 2]
        for visit in range(1 + (i == 0)):
            for region in REGIONS:
                own = rng.normal(1.3, 0.1)
                where = {"person": f"sub-{i}", "session": f"ses-{visit}", "tracer": "amyloid", "region": region}
                swap = {"F": -0.1, "M": 0.1}[sex] if region == "precuneus" else 0.0
                effects = {"factual": 0.0, "wrong_sex": swap, "tracer_only": 0.0, "age_55": 0.0, "age_85": 0.05}
                for condition, effect in effects.items():
                    noise = 0 if condition == "factual" else rng.normal(0, 0.01)
                    rows.append(where | {"condition": condition, "sex": sex, "suvr": own + effect + noise})
    return pd.DataFrame(rows)


def test_planted_changes_are_recovered():
    summary = change_summary(prompt_changes(planted()), seed=0).set_index(["condition", "region"])
    assert summary.loc[("sex_F", "precuneus"), "mean"] == pytest.approx(0.1, abs=0.01)
    assert summary.loc[("sex_M", "precuneus"), "strict_high"] < -0.08
    assert (summary.loc["age_85", "strict_low"] > 0).all()
    for condition, region in (("sex_F", "pons"), ("tracer_only", "summary")):
        row = summary.loc[(condition, region)]
        assert row["strict_low"] < 0 < row["strict_high"]
        assert row["strict_low"] <= row["low"] <= row["mean"] <= row["high"] <= row["strict_high"]
    assert set(summary.loc["sex_F", "n"]) == {12}
    assert set(summary.loc["age_85", "n"]) == {24}  # the second visit of one is no second person


def test_conditions_of_other_sessions_are_refused():
    suvr = planted()
    with pytest.raises(ValueError, match="'age_85' and 'factual' are not of the same sessions"):
        prompt_changes(suvr.drop(suvr[(suvr["condition"] == "age_85") & (suvr["person"] == "sub-3")].index))
    with pytest.raises(ValueError, match="no condition except 'factual'"):
        prompt_changes(suvr[suvr["condition"] == "factual"])


def test_figure_has_a_map_of_ages_and_a_panel_for_each_prompt():
    def figure(suvr):
        summary = change_summary(prompt_changes(suvr), seed=0)
        return draw("15_counterfactuals", profile=SimpleNamespace(notice="phantom data"), summary=summary)

    titles = {axes.get_title(loc="left"): axes for axes in figure(planted()).axes if axes.get_title(loc="left")}
    assert list(titles) == ["one age for everyone", "sex swapped", "no text but the tracer"]
    (image,) = titles["one age for everyone"].images
    assert image.get_array().shape == (3, 2)
    np.testing.assert_allclose(np.asarray(image.get_array())[:, 1], 0.05, atol=0.01)
    assert titles["sex swapped"].get_xlim() == titles["no text but the tracer"].get_xlim()  # one scale
    assert len(figure(planted().query("condition in ['factual', 'tracer_only']")).axes) == 1  # without a sweep
