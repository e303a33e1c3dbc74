"""Calibration, coverage and ranking on errors whose distribution is known."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import times, tiny_resdm
from notebook_cells import check_latex, check_texts, draw, texts
from stored_cohort import GRID, RANGES, make_config, person, write_volumes
from tiny_methods import save_profile_model

from resdm.io import sha256, write_csv
from resdm.method import build_method
from resdm.settings import ConfigError, derive_seed
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.apps.prediction import Model
from resdm_suite.apps.synthesis import sample_method
from resdm_suite.evaluation import uncertainty
from resdm_suite.evaluation.statistics import interval
from resdm_suite.evaluation.uncertainty import (
    LEVELS,
    PREDICTORS,
    Samples,
    Uncertainty,
    UncertaintyError,
    calibrate,
    compare_predictors,
    coverage,
    deviation_bins,
    error_maps,
    evaluate_samples,
    likelihood,
    rank_summary,
    read_samples,
    risk_coverage,
    smooth_map,
)
from resdm_suite.profiles import UncertaintyConfig, load_config
from resdm_suite.records import NAME
from resdm_suite.reporting.uncertainty import findings, uncertainty_points, uncertainty_table, verdict

N, V = 40, 2000
RAW = calibrate(*[np.empty((0, 0))] * 3, "raw")


LEVEL_90 = LEVELS.index(0.9)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def simulate(rng, n=N, factor=1.0):
    """Residuals of a known deviation at every voxel of every person, and a spread that is off by a factor."""
    true = rng.uniform(0.05, 0.5, (n, V))
    return true * rng.normal(size=(n, V)), true / factor, true


def make_samples(rng, people, factor=1.0):
    residual, std, _ = simulate(rng, n=len(people), factor=factor)
    return Samples(pd.DataFrame({"person": people, "session": range(len(people))}), residual, residual, std)


# ── known noise ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("factor", "raw"), [(1, 0.9), (5, 0.258)])  # P(|z| < 1.645 / 5)
def test_a_spread_is_calibrated_to_nominal_coverage(rng, factor, raw):
    residual, std, _ = simulate(rng, factor=factor)
    assert RAW.quantiles[0.9] == pytest.approx(1.6449, abs=1e-4)
    before = coverage(residual, RAW.sigma(std, np.zeros_like(std)), RAW)
    assert before.shape == (N, len(LEVELS))
    assert before.mean(axis=0)[LEVEL_90] == pytest.approx(raw, abs=0.01)
    fit = calibrate(residual, std, error_maps(residual, range(N))[1], "sampling")
    assert (fit.a, fit.b) == (pytest.approx(factor**2, rel=0.05), 0)
    new, spread, _ = simulate(np.random.default_rng(1), factor=factor)
    after = coverage(new, fit.sigma(spread, np.zeros_like(spread)), fit).mean(axis=0)
    np.testing.assert_allclose(after, LEVELS, atol=0.01)


def test_errors_that_are_not_gaussian_are_covered_too(rng):
    residual, std = rng.laplace(scale=0.1, size=(N, V)), np.full((N, V), 0.01)
    whole, without = error_maps(residual, range(N))
    fit = calibrate(residual, std, without, "map")
    shares = coverage(rng.laplace(scale=0.1, size=(N, V)), fit.sigma(std, whole), fit)
    np.testing.assert_allclose(shares.mean(axis=0), LEVELS, atol=0.01)


def test_each_part_of_the_variance_gets_its_weight(rng):
    error, std = np.broadcast_to(rng.uniform(0.05, 0.3, V), (200, V)), rng.uniform(0.01, 0.1, (200, V))
    for a, b in ((4, 0.5), (0, 1)):
        fit = calibrate(np.sqrt(a * std**2 + b * error**2) * rng.normal(size=(200, V)), std, error, "both")
        assert (fit.a, fit.b) == (pytest.approx(a, rel=0.05, abs=0.05), pytest.approx(b, rel=0.05))


def test_the_right_deviation_has_the_lowest_negative_log_likelihood(rng):
    residual, _, true = simulate(rng)
    right = likelihood(residual, true)
    assert right.mean() == pytest.approx(np.mean(np.log(true)) + 0.5 + 0.5 * np.log(2 * np.pi), abs=0.01)
    for wrong in (0.8 * true, 1.25 * true, np.full_like(true, np.sqrt(np.mean(true**2)))):
        assert (likelihood(residual, wrong) > right).mean() > 0.95


def test_the_error_follows_the_right_predicted_deviation(rng):
    residual, _, true = simulate(rng)
    table = deviation_bins(residual, true)
    assert table["n"].sum() == N * V
    np.testing.assert_allclose(table["error"], table["predicted"], rtol=0.03)
    assert table["predicted"].is_monotonic_increasing
    shuffled = deviation_bins(residual, np.random.default_rng(2).permutation(true.ravel()).reshape(true.shape))
    assert shuffled["error"].max() / shuffled["error"].min() < 1.1  # an uninformative spread


def test_an_error_map_is_made_without_the_person(monkeypatch):
    monkeypatch.setattr(uncertainty, "FOLDS", 3)
    residual = np.ones((6, 3))
    residual[4] = 100
    whole, without = error_maps(residual, range(6))
    np.testing.assert_allclose(whole, np.sqrt((5 + 1e4) / 6))
    np.testing.assert_allclose(without[[1, 4]], 1)  # persons 1 and 4 are in one fold
    np.testing.assert_allclose(without[0], np.sqrt((3 + 1e4) / 4))
    residual = np.array([[100.0], [100], [1], [1]])
    monkeypatch.setattr(uncertainty, "FOLDS", 2)
    whole, without = error_maps(residual, ["a", "a", "b", "c"])  # a and c are in one fold
    np.testing.assert_allclose(whole, np.sqrt((2e4 + 2) / 4))
    np.testing.assert_allclose(without, [[1], [1], [np.sqrt((2e4 + 1) / 3)], [1]])
    with pytest.raises(UncertaintyError, match="1 validation people; at least 2"):
        error_maps(residual[:2], ["a", "a"])


def test_sessions_and_people_are_weighted_as_documented(rng):
    """Calibration on everyone twice equals that on everyone once; test people count once whatever their sessions."""
    once = make_samples(rng, list("abcdefghij"))
    arrays = (np.concatenate([array, array]) for array in (once.residual, once.mean, once.std))
    twice = Samples(pd.concat([once.who, once.who.assign(session="2")]), *arrays)
    fits = [compare_predictors(samples, once, seed=0)["calibration"] for samples in (once, twice)]
    columns = ["a", "b", "q50", "q90"]
    np.testing.assert_allclose(fits[1][columns], fits[0][columns], rtol=1e-3)
    samples = make_samples(rng, ["a"] * 10 + ["b", "c"])
    results = compare_predictors(samples, samples, seed=0)
    assert results["people"]["person"].tolist() == ["a", "b", "c"]
    share = coverage(samples.residual, samples.std, RAW)[:, LEVEL_90]
    row = results["coverage"].query("predictor == 'raw' and nominal == 0.9").iloc[0]
    assert (row["coverage"], row["n"]) == (pytest.approx(np.mean([share[:10].mean(), share[10], share[11]])), 3)


def test_a_map_is_smoothed_inside_the_brain_only():
    grid = Grid((32, 36, 32), 6.0)
    voxels = int(mni_map("brain", grid).sum())
    np.testing.assert_allclose(smooth_map(np.full(voxels, 0.2), grid), 0.2, rtol=1e-6)  # no darker rim
    noisy = np.abs(np.random.default_rng(0).normal(0.2, 0.05, (2, voxels)))
    smooth = smooth_map(noisy, grid)
    assert smooth.shape == noisy.shape
    assert smooth.std() < 0.5 * noisy.std()


@pytest.mark.parametrize(("people", "value", "message"), [(0, 0, "nobody to calibrate on"), (2, np.nan, "not finite")])
def test_a_calibration_needs_people_and_finite_values(people, value, message):
    with pytest.raises(UncertaintyError, match=message):
        calibrate(np.full((people, 3), value), np.ones((people, 3)), np.ones((people, 3)))


# ── ranking ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("score", "risk"), [([4, 1, 3, 2], [1, 1.5, 2, 2.5]), ([1, 4, 2, 3], [4, 3.5, 3, 2.5])])
def test_the_risk_coverage_curve_by_hand(score, risk):
    np.testing.assert_allclose(risk_coverage(np.array(score), np.array([4.0, 1.0, 3.0, 2.0])), risk)


def test_a_score_ranks_as_well_as_it_follows_the_error(rng):
    error = rng.gamma(2, size=200)
    best = rank_summary(error**2, error, seed=0)  # any increasing function
    assert (best["rho"], best["gain"]) == (1, 1)
    assert best["aurc"] == best["aurc_oracle"] < best["aurc_random"] == error.mean()
    chance = rank_summary(rng.permutation(error), error, seed=0)
    assert chance["rho_low"] < 0 < chance["rho_high"]
    assert abs(chance["gain"]) < 0.3
    assert rank_summary(-error, error, seed=0)["gain"] < 0
    half = rank_summary(error + rng.normal(0, error.std(), 200), error, seed=0)
    assert 0.3 < half["rho_low"] < half["rho"] < half["rho_high"] < 0.95
    flat = rank_summary(np.full(20, 0.1) + 1e-16 * np.arange(20), error[:20], seed=0)
    assert (flat["aurc"], flat["gain"]) == (error[:20].mean(), 0)
    assert np.isnan([flat["rho"], flat["rho_low"]]).all()


def test_the_gain_of_sampling_over_a_map_is_measured(rng):
    results = compare_predictors(*(make_samples(rng, range(40), factor=3) for _ in range(2)), seed=0)
    gain = results["likelihood"].set_index("predictor")
    assert gain.loc["both", "gain_low"] > 0.05
    assert gain.loc["map", "gain"] == 0
    covered = results["coverage"].set_index(["predictor", "nominal"])["coverage"].xs(0.9, level="nominal")
    assert covered.index.tolist() == list(PREDICTORS)
    np.testing.assert_allclose(covered[["sampling", "map", "both"]], 0.9, atol=0.01)
    assert covered["raw"] < 0.5


def test_the_intervals_are_those_of_all_other_tables(rng):
    """The seed's resamples of people, by hand for coverage and for the gain."""
    samples = make_samples(rng, range(12))
    results = compare_predictors(samples, samples, seed=7)
    share = coverage(samples.residual, samples.std, RAW)[:, LEVEL_90]
    row = results["coverage"].query("predictor == 'raw' and nominal == 0.9").iloc[0]
    assert (row["low"], row["high"]) == pytest.approx(interval(share, seed=7))
    whole, without = error_maps(samples.residual, range(12))
    losses = []
    for predictor in ("map", "both"):
        fit = calibrate(samples.residual, samples.std, without, predictor)
        losses.append(likelihood(samples.residual, fit.sigma(samples.std, np.broadcast_to(whole, samples.std.shape))))
    row = results["likelihood"].query("predictor == 'both'").iloc[0]
    assert (row["gain_low"], row["gain_high"]) == pytest.approx(interval(losses[0], minus=losses[1], seed=7))


# ── table and figure ──────────────────────────────────────────────────────────────────────────────


def evaluated(n=40, known=True):
    """Results with known truth: the spread follows people's own deviation, or is unrelated and far too small."""
    rng = np.random.default_rng(0)

    def make(names, scale):
        who = pd.DataFrame({"person": [f"p{i}" for i in range(n)], "session": ""})
        true = rng.uniform(0.5, 2, (n, 1)) * rng.uniform(0.1, 0.2, (n, len(names) or V))
        residual = scale * true * rng.normal(size=true.shape)
        residual[:, 0] *= 3 if names and scale > 1 else 1
        return Samples(who, residual, residual, (true if known else rng.permutation(true)) / 3, names)

    frames = {name: [] for name in Uncertainty.__dataclass_fields__}
    for unit, names in (("voxel", ()), ("regions", ("left_one", "other"))):
        results = compare_predictors(make(names, 1.0), make(names, 1.0 if known else 1.5), seed=0)
        for name, frame in results.items():
            if unit == "voxel" or name in ("calibration", "likelihood", "coverage"):
                frame = frame.assign(unit=frame.get("unit", unit)) if name != "people" else frame
                frames[name].append(frame.assign(tracer="tau"))
    return Uncertainty(**{name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()})


@pytest.fixture(scope="module")
def knows():
    return evaluated()


@pytest.fixture(scope="module")
def blind():
    return evaluated(known=False)


def figure(result, individual=True):
    profile = SimpleNamespace(individual=individual, notice="phantom data")
    points, curves = uncertainty_points(profile, result)
    return draw("14_uncertainty", profile=profile, method="ResDM", result=result, points=points, curves=curves)


def test_findings_follow_the_numbers(knows, blind):
    sentences = findings(knows)
    assert len(sentences) == 3
    assert "both inside 85 to 95 %" in sentences[0]
    assert ": better prediction of the error of a voxel" in sentences[1]
    assert "samples, uncalibrated and both rank people by error" in sentences[2]
    sentences = findings(blind)
    covered = blind.coverage.query("unit == 'left_one' and predictor == 'both' and nominal == 0.9").iloc[0]
    assert covered["coverage"] < 0.85
    assert "not both inside 85 to 95 %" in sentences[0]
    numbers = tuple(f"{100 * covered[key]:.0f}" for key in ("coverage", "low", "high"))
    assert "left one {} [{}, {}]".format(*numbers) in sentences[0]
    assert "better prediction" not in sentences[1]
    assert "no score ranks people by error" in sentences[2]
    drawn = figure(blind)
    assert any("no score ranks people by error" in text and "samples add to" not in text for text in texts(drawn))
    check_texts(drawn)


def test_the_verdict_follows_the_likelihood_of_each_tracer(knows, blind):
    gain = knows.likelihood.query("unit == 'voxel' and predictor == 'both'").iloc[0]
    tracers = "tau-PET (gain {:.3f} [{:.3f}, {:.3f}] per voxel)".format(*gain[["gain", "gain_low", "gain_high"]])
    assert verdict(knows) == f"Verdict: the spread over samples adds to the error map for {tracers}."
    assert verdict(blind).startswith("Verdict: the spread over samples adds nothing to the error map, for tau-PET (gai")
    other = blind.likelihood.assign(tracer="amyloid")
    both = dataclasses.replace(knows, likelihood=pd.concat([other, knows.likelihood]))
    assert re.fullmatch(r"Verdict: .* for tau-PET \(.*\), not for Aβ-PET \(.*\)\.", verdict(both))


def test_where_single_people_may_not_be_shown_every_point_is_of_five():
    for n, groups, steps in ((4, 0, 0), (9, 1, 1), (23, 4, 4), (31, 5, 6)):
        points, curves = uncertainty_points(SimpleNamespace(individual=False), evaluated(n=n))
        assert len(points) == groups
        kept = curves.loc[curves["curve"] == "oracle", "kept"].to_numpy() * n / 100
        assert len(kept) == steps
        assert (np.diff([0, *kept]) >= 5 - 1e-9).all()
    points, curves = uncertainty_points(SimpleNamespace(individual=True), evaluated(n=23))
    assert [len(points), (curves["curve"] == "oracle").sum()] == [23, 23]


# ── stored samples ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def config(tmp_path):
    """A cohort of a few people on disk and a model that nobody trained."""
    config = make_config(
        tmp_path, methods={"ResDM": tiny_resdm(sampling_steps=2)}, uncertainty=UncertaintyConfig(samples=3)
    )
    splits = ["train"] + ["validation"] * 4 + ["test"] * 4
    write_volumes(config, splits, without_tau=(2, 6))
    torch.manual_seed(0)
    method = build_method(config.method("ResDM"), GRID.shape)
    save_profile_model(config.model("ResDM"), method, config, "ResDM")
    return config


def test_from_samples_to_table_and_figure(config, tmp_path):
    with pytest.raises(UncertaintyError, match="no samples of 'ResDM' there; make them first"):
        evaluate_samples(config, "ResDM")
    out = sample_method(config, progress=False)
    assert out == config.predictions("ResDM", "samples")
    made = times(out, pattern="*.nii.gz")
    assert len(made) == 8 * 2 * 2  # people, tracers, mean and deviation; also where no real PET is
    calibration = json.loads((config.model("ResDM") / "calibration.json").read_text())
    assert calibration["model"] == sha256(config.model("ResDM") / "model.safetensors")
    assert calibration["tracers"] == {}  # of four validation people no tracer has an interval
    sample_method(config, progress=False)
    assert times(out, pattern="*.nii.gz") == made
    # by hand, one person
    tau = read_samples(config, "ResDM", "tau", "test")
    assert tau.who["person"].tolist() == ["sub-0005", "sub-0007", "sub-0008"]  # 6 has none
    model, brain = Model.load(config.model("ResDM")), mni_map("brain", GRID)
    mri = np.load(config.volumes / "cohort.npy")[7, 0]
    seed = derive_seed(0, "sub-0007", "ses-M000")
    draws = [pet[1] for pet in model.draws(mri, 67.0, "M", seed=seed, samples=3, steps=2)]
    low, high = RANGES["tau"]
    np.testing.assert_allclose(tau.std[1], (high - low) * np.std(draws, axis=0, ddof=1)[brain], atol=1e-5)
    real = low + (high - low) * person(7)["tau"][brain]
    np.testing.assert_allclose(tau.residual[1], real - low - (high - low) * np.mean(draws, axis=0)[brain], atol=1e-4)
    regional = pd.read_csv(out / "regional.csv")
    assert set(regional["split"]) == {"validation", "test"}
    found = evaluate_samples(config, "ResDM")
    assert found.people.groupby("tracer").size().to_dict() == {"amyloid": 4, "tau": 3}
    table = uncertainty_table(config, found)
    assert "phantom data" in table.heading
    assert "90 %" in table.markdown()
    assert table.notes[0] == verdict(found)
    assert table.notes[1:7] == findings(found)
    assert "guarantees" in " ".join(table.notes)
    check_latex(table.latex())
    assert set(table.frame["measure"]) >= {"coverage_90", "width_90", "nll_gain", "rho", "aurc", "q95", "a"}
    for individual in (True, False):
        figure(found, individual).canvas.draw()
    index = pd.read_csv(config.volumes / "index.csv")
    one = index.assign(present_tau=index["present_tau"].mask(index["person"].isin(["sub-0003", "sub-0004"]), 0))
    write_csv(config.volumes / "index.csv", one)
    (out / NAME).unlink()  # else what is older than the index is refused
    assert set(evaluate_samples(config, "ResDM").people["tracer"]) == {"amyloid"}, "tau of one validation person"


def test_a_profile_needs_two_samples(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("cohort: {kind: other}\nuncertainty: {samples: 1}\n")
    with pytest.raises(ConfigError, match=r"uncertainty\.samples is 1; expected at least 2"):
        load_config(path)
