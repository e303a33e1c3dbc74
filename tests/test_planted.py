"""Planted effects: recovered from made-up people within their interval, numbers by hand, and what is refused."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from notebook_cells import run_cells
from scipy import stats
from stored_cohort import LABELS, make_cohort, make_config

from resdm.io import write_csv, write_json
from resdm.settings import ConfigError
from resdm_suite.anatomy import REFERENCE
from resdm_suite.cohorts.phantom.truth import grey_share, planted_effects, thinning_slope
from resdm_suite.cohorts.phantom.uptake import REGIONAL
from resdm_suite.evaluation.image_quality import score_method
from resdm_suite.evaluation.planted import (
    EFFECTS,
    EVERY_REGION,
    estimate_effects,
    jackknife,
    read_causes,
    read_planted,
    recovered_effects,
    recovery,
    regional_sources,
)
from resdm_suite.evaluation.suvr import regional_suvr
from resdm_suite.profiles import CohortConfig, PhantomConfig
from resdm_suite.reporting.tables import with_interval

REGIONS = ("frontal", "pons")
PLANTED = {"status": 0.40, "sex": 0.15, "age": 0.10}  # of frontal; nothing in the pons


def make_people(n: int, seed: int = 0, noise: float = 0.03) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Causes and regional SUVR of n people, every fourth with two visits; sex and disease go together."""
    rng = np.random.default_rng(seed)
    causes, regional = [], []
    for i in range(n):
        woman = float(rng.random() < 0.5)
        positive = float(rng.random() < 0.3 + 0.3 * woman)
        load = 0.4 / 0.5 * positive + 0.1 * rng.normal()
        stage, own = 1.0 + load + 0.5 * rng.normal(), noise * rng.normal(size=2)
        for visit in range(2 if i % 4 == 0 else 1):
            who = {"person": f"sub-{i:04d}", "session": f"ses-M{12 * visit:03d}"}
            decades, fbb, severity = rng.normal(), float(i % 3 == 0), rng.normal()
            suvr = PLANTED["sex"] * woman + PLANTED["age"] * decades + 0.05 * severity + own[0]
            causes.append(who | {"woman": woman, "decades": decades, "florbetaben": fbb, "load": load, "stage": stage}
                          | {"severity": severity, "amyloid_positive": positive, "tau_positive": positive})  # fmt: skip
            for tracer, disease in (("amyloid", 0.5 * load * (1 + 0.12 * fbb)), ("tau", 0.02 * (stage - 1) ** 3)):
                row = {"source": "real", "training": 0, **who, "tracer": tracer}
                values = zip(REGIONS, (1 + suvr + disease, 1 + own[1]), strict=True)
                regional += [row | {"region": region, "suvr": value} for region, value in values]
    return pd.DataFrame(regional), pd.DataFrame(causes)


def test_intervals_of_known_effects_have_their_nominal_coverage():
    """Coverage over many cohorts: 95 % of the intervals hold the planted slope, though sex foretells disease."""
    held = {("amyloid", "sex"): [], ("amyloid", "age"): [], ("tau", "sex"): [], ("tau", "age"): []}
    pons, estimates = [], []
    for seed in range(60):
        frame = estimate_effects(*make_people(30, seed)).set_index(["tracer", "effect", "region"])
        for (tracer, effect), inside in held.items():
            row = frame.loc[(tracer, effect, "frontal")]
            inside.append(row["low"] <= PLANTED[effect] <= row["high"])
            estimates.append(row["estimate"] - PLANTED[effect])
        pons += [row["low"] <= 0 <= row["high"] for _, row in frame.xs("pons", level="region").iterrows()]
    for inside in held.values():
        assert 0.85 < np.mean(inside) <= 1
    assert 0.90 < np.mean(pons) < 1  # without an effect, 5 % of the intervals exclude 0
    assert abs(np.mean(estimates)) < 0.003


def test_status_is_the_difference_of_means():
    regional, causes = make_people(24)
    frame = estimate_effects(regional, causes).set_index(["tracer", "effect", "region"])
    values = regional[(regional["tracer"] == "tau") & (regional["region"] == "frontal")].reset_index(drop=True)
    positive = causes["tau_positive"] == 1
    by_hand = values.loc[positive, "suvr"].mean() - values.loc[~positive, "suvr"].mean()
    row = frame.loc[("tau", "status", "frontal")]
    assert row["estimate"] == pytest.approx(by_hand)
    assert (row["n"], row["sessions"], row["unit"]) == (24, 30, "SUVR")


def test_jackknife_of_a_mean_is_the_t_interval_over_people():
    y = np.array([[1.0], [2.0], [4.0], [9.0]])
    estimate, low, high = jackknife(np.ones((4, 1)), y, np.array(list("abcd")))[:, 0]
    half = stats.t.ppf(0.975, 3) * y.std(ddof=1) / 2
    assert (estimate, low, high) == pytest.approx((4.0, 4 - half, 4 + half))
    visits = jackknife(np.ones((12, 1)), np.repeat(y, 3, axis=0), np.repeat(list("abcd"), 3))[:, 0]
    np.testing.assert_allclose(visits, (estimate, low, high))  # three equal visits of everyone add no information


def test_the_variance_between_trainings_is_added_to_that_between_people():
    rng = np.random.default_rng(0)
    y, x = rng.normal(size=(4, 12, 2)), np.column_stack([rng.normal(size=12), np.ones(12)])
    alone, all_four = jackknife(x, y.mean(0), np.arange(12)), jackknife(x, y, np.arange(12))
    np.testing.assert_allclose(alone[0], all_four[0])
    slopes = [np.polyfit(x[:, 0], layer, 1)[0] for layer in y]
    half = stats.t.ppf(0.975, 11)
    variance = ((alone[2] - alone[0]) / half) ** 2 + np.var(slopes, axis=0, ddof=1) / 4
    np.testing.assert_allclose(all_four[2] - all_four[0], half * np.sqrt(variance))
    np.testing.assert_allclose(jackknife(x, y[:1], np.arange(12)), jackknife(x, y[0], np.arange(12)))


def test_a_cause_that_nobody_has_does_no_harm():
    regional, causes = make_people(24)
    without = estimate_effects(regional, causes.assign(florbetaben=0.0))
    amyloid = without[(without["tracer"] == "amyloid") & (without["effect"] == "sex")].set_index("region")
    about = causes[["woman", "decades", "load", "severity"]].assign(one=1.0).to_numpy()
    values = regional[(regional["tracer"] == "amyloid") & (regional["region"] == "frontal")]["suvr"].to_numpy()
    assert amyloid.loc["frontal", "estimate"] == pytest.approx(np.linalg.lstsq(about, values)[0][0])


def test_too_few_people_give_no_number():
    regional, causes = make_people(7)
    frame = estimate_effects(regional, causes).set_index(["tracer", "effect", "region"])
    assert np.isnan(frame.loc[("amyloid", "sex", "frontal"), "estimate"])  # seven columns
    assert np.isfinite(frame.loc[("amyloid", "status", "frontal"), "estimate"])
    everyone = estimate_effects(regional, causes.assign(amyloid_positive=1.0)).set_index(["tracer", "effect"])
    assert everyone.loc[("amyloid", "status"), ["estimate", "low", "high"]].isna().all(axis=None)
    only = causes["amyloid_positive"].where(causes["person"] == "sub-0001", 0.0)  # without this person: singular
    one = estimate_effects(regional, causes.assign(amyloid_positive=only)).set_index(["tracer", "effect"])
    assert one.loc[("amyloid", "status"), "estimate"].isna().all()


# ── with a cohort on disk ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Twelve test people with volumes, predictions that are blurred, and a truth that is made from the real PET."""
    config, index = make_cohort(tmp_path_factory.mktemp("cohort"), {"ResDM": 0.5}, people=12)
    config = dataclasses.replace(config, cohort=CohortConfig(phantom=PhantomConfig(anatomy_mm=4.0)))
    score_method(config, "ResDM")
    for record in config.work.rglob(".record.json"):  # tests change the index
        record.unlink()
    test = index[index["split"] == "test"]
    real = regional_suvr(config, "ResDM", test)[0].rename(columns={"real": "suvr"})
    real = real[real["region"] != "summary"]
    truth = config.work / "truth"
    write_csv(truth / "regional.csv", real[["person", "session", "tracer", "region", "suvr"]])
    people = index[["person", "session", "age", "sex"]].assign(amyloid_tracer=LABELS["amyloid"])
    rng = np.random.default_rng(0)
    people = people.assign(**{key: rng.normal(size=len(people)) for key in ("load", "stage", "severity")})
    people = people.assign(amyloid_positive=index.index % 2, tau_positive=index.index % 2)
    write_csv(truth / "people.csv", people)
    effects = {"status": 0.4, "sex": 0.2, "age": 0.01}
    planted = {tracer: dict.fromkeys(real["region"].unique(), effects) for tracer in LABELS}
    write_json(truth / "truth.json", {"age_centre": 60.0, "planted": planted})
    return config


def by_region(frame, source):
    return frame[frame["source"] == source].set_index(["person", "session", "tracer", "region"])


def test_sources_are_the_true_the_real_and_the_synthetic_suvr_of_the_test_people(config):
    frame = regional_sources(config, {"ResDM": ["ResDM"]})
    assert list(dict.fromkeys(frame["source"])) == ["truth", "real", "ResDM"]
    truth = by_region(frame, "truth")["suvr"]
    np.testing.assert_allclose(truth, by_region(frame, "real")["suvr"].reindex(truth.index))  # as the fixture made it
    stored = regional_suvr(config, "ResDM")[0].assign(source="ResDM")
    made, stored = by_region(frame, "ResDM")["suvr"], by_region(stored, "ResDM")["synthetic"]
    np.testing.assert_array_equal(made, stored.reindex(made.index))
    assert set(frame["person"]) == {f"sub-{i:04d}" for i in range(12)}  # nobody of the training people
    causes = read_causes(config).query("session == 'ses-M000'").set_index("person")
    assert causes.loc["sub-0000", ["woman", "decades", "florbetaben"]].tolist() == [1, 0, 0]
    assert causes.loc["sub-0003", ["woman", "decades", "florbetaben"]].tolist() == [1, 0.4, 0]


def test_table_compares_with_what_is_planted(config):
    thinning = {tracer: dict.fromkeys(read_planted(config)["region"].unique(), -0.045) for tracer in LABELS}
    whole = recovered_effects(config, {"ResDM": ["ResDM"]}, thinning)
    assert not (whole["region"].eq("summary") | whole["region"].eq(whole["tracer"].map(REFERENCE))).any()
    assert not whole.duplicated(["source", "tracer", "region", "effect"]).any()
    frame = whole[whole["region"] != EVERY_REGION]
    age, sex = (frame[frame["effect"] == effect] for effect in ("age", "sex"))
    assert age["planted"].eq(0.01).all()
    assert np.allclose(age["expected"], -0.035)
    assert sex["expected"].eq(0.2).all()
    np.testing.assert_allclose(sex["recovery"], sex["estimate"] / 0.2)
    assert (sex["covered"] == (sex["low"] <= 0.2) & (sex["high"] >= 0.2)).all()
    assert (frame.loc[frame["source"] == "truth", "of_truth"].dropna() == 1).all()
    slopes = whole[whole["region"] == EVERY_REGION].set_index(["source", "tracer", "effect"])
    for key, part in frame.groupby(["source", "tracer", "effect"]):
        fitted = np.linalg.lstsq(part[["expected"]].to_numpy(), part["estimate"].to_numpy())[0][0]
        assert slopes.loc[key, "estimate"] == pytest.approx(fitted, nan_ok=True), key
        assert slopes.loc[key, "planted"] == slopes.loc[key, "expected"] == 1
    assert (slopes["low"] < slopes["estimate"]).sum() == (slopes["estimate"] < slopes["high"]).sum() > 10
    real = frame[frame["source"] == "real"].dropna(subset="of_truth")
    np.testing.assert_allclose(real["of_truth"], 1)  # the fixture's truth is the real PET's
    alone = recovered_effects(config).query("effect == 'age' and region == 'frontal'")
    assert alone["recovery"].isna().all()  # 0.01 is below what has a ratio


def test_trainings_are_averaged(config):
    """A second training that is the template: effects are halved, as the template has none, and less sure."""
    one, two = (recovered_effects(config, {"ResDM": names}) for names in (["ResDM"], ["ResDM", "template"]))
    keys = ["tracer", "region", "effect"]
    one, two = (frame[frame["source"] == "ResDM"].set_index(keys) for frame in (one, two))
    assert (one["trainings"].eq(1) & two["trainings"].eq(2)).all()
    known = one["estimate"].notna()
    np.testing.assert_allclose(two["estimate"][known], one["estimate"][known] / 2, atol=1e-6)
    assert (two["high"] - two["low"])[known].gt((one["high"] - one["low"])[known] / 2).all()


def test_recovery_is_the_slope_over_regions():
    """Effects of four people by hand: two positive ones differ from two negative ones by a share of what is planted."""
    who = pd.DataFrame({"person": list("abcdef"), "session": "s"})
    causes = who.assign(**dict.fromkeys(("woman", "decades", "florbetaben", "load", "stage", "severity"), 0.0))
    causes = causes.assign(amyloid_positive=0.0, tau_positive=[0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    planted, rows = {"r0": 0.25, "r1": 0.5, "r2": 0.0}, []
    for source, share in {"truth": 0.8, "ceiling": 0.5, "half": 0.4}.items():
        for region, effect in planted.items():
            suvr = 1 + share * effect * causes["tau_positive"] + 0.01 * np.array([0, 1, 2, 0, 1, 2])
            rows.append(who.assign(source=source, training=0, tracer="tau", region=region, suvr=suvr))
    expected = pd.Series({("tau", region, "status"): effect for region, effect in planted.items()})
    frame = estimate_effects(pd.concat(rows), causes, expected)
    frame["expected"] = [planted.get(region, 1.0) for region in frame["region"]]
    frame["covered"] = pd.array(frame["region"] == "r2", "boolean")
    found = recovery(frame[frame["effect"] == "status"]).set_index("source")
    assert found["slope"].to_dict() == pytest.approx({"truth": 0.8, "ceiling": 0.5, "half": 0.4})
    assert found["of_truth"].to_dict() == pytest.approx({"truth": 1.0, "ceiling": 0.625, "half": 0.5})
    assert found["of_ceiling"].to_dict() == pytest.approx({"truth": 1.6, "ceiling": 1.0, "half": 0.8})
    assert (found["covered"] == 1).all()
    assert (found["regions"] == 3).all()
    # 0.01 · (0, 1, 2) is noise of the same sd in every region: the slope's error is that of a difference of two means,
    # 0.01 · √(1/3 + 1/3) with the jackknife's n/(n − 1), times Σx/Σx²
    half = stats.t.ppf(0.975, 5) * 0.01 * np.sqrt(2 / 3) * 0.75 / 0.3125
    assert found.loc["half", "high"] - 0.4 == pytest.approx(half, rel=0.2)
    frame = estimate_effects(pd.concat(rows), causes, 0 * expected).assign(covered=pd.NA)
    nothing = recovery(frame.query("effect == 'status'"))
    assert nothing["slope"].isna().all()
    assert nothing.set_index("source").loc["half", "largest"] == pytest.approx(0.2)


def test_the_page_and_the_picture(config, tmp_path):
    cells = run_cells("11", config)
    frame, text, figure = cells["frame"], cells["table"].markdown(), cells["figure"]
    assert set(frame["source"]) == {"truth", "real", "ResDM"}
    assert text.startswith("## Planted and recovered effects (phantom data")
    row = frame[(frame["source"] == "ResDM") & (frame["effect"] == "sex")].iloc[0]
    assert f"| {with_interval(row['estimate'], row['low'], row['high'], 3)} |" in text
    slopes = cells["slopes"].set_index(["source", "tracer", "effect"]).loc[("ResDM", "tau", "sex")]
    assert f"| {with_interval(slopes['slope'], slopes['low'], slopes['high'])} |" in text
    assert cells["table"].latex().isascii()
    assert len(figure.axes) == 2 * len(EFFECTS)
    before = (config.figures / "planted.png").read_bytes()
    run_cells("11", config, "11-02", "11-07", **{name: cells[name] for name in ("regions", "title", "record")})
    assert (config.figures / "planted.png").read_bytes() == before


@contextmanager
def with_index(config, change):
    """The cohort with another index."""
    index = config.volumes / "index.csv"
    stored = index.read_text()
    try:
        write_csv(index, change(pd.read_csv(index)))
        yield
    finally:
        index.write_text(stored)


def test_a_handful_of_people_gives_a_page_without_estimates(config, tmp_path):
    few = dataclasses.replace(config, root=tmp_path)
    few.work.parent.mkdir()
    few.work.symlink_to(config.work)
    with with_index(config, lambda frame: frame[frame["person"].isin(["sub-0002", "sub-0003"])]):
        cells = run_cells("11", few)
    assert cells["frame"][["estimate", "covered"]].isna().all(axis=None)
    assert len(cells["figure"].axes) == 2 * len(EFFECTS)


def test_no_truth_no_table(config, tmp_path):
    real = dataclasses.replace(config, profile="clinic", cohort=CohortConfig(kind="adni"))
    with pytest.raises(ValueError, match="'clinic' has a cohort of kind adni: no truth is planted"):
        run_cells("11", real, "11-02", "11-04")
    with pytest.raises(ConfigError, match=r"cohort\.phantom is missing"):
        thinning_slope(real)
    with pytest.raises(FileNotFoundError, match=r"truth\.json: no truth of these phantoms; run `resdm phantom`"):
        run_cells("11", make_config(tmp_path), "11-02", "11-04")
    with (
        with_index(config, lambda frame: frame.replace("sub-0003", "sub-9999")),
        pytest.raises(ValueError, match=r"test people without truth \(sub-9999\)"),
    ):
        regional_sources(config)


# ── the generator ─────────────────────────────────────────────────────────────────────────────────


def test_thinning_is_what_age_does_where_no_effect_of_age_is_planted(tmp_path):
    settings = PhantomConfig(anatomy_mm=4.0, age_effect=0.0, sex_effect=0.0)
    config = make_config(tmp_path, cohort=CohortConfig(phantom=settings))
    planted, slopes = planted_effects(config), thinning_slope(config)
    effects = [effects for regions in planted.values() for effects in regions.values()]
    assert not any(effect["age"] or effect["sex"] for effect in effects)
    assert set(slopes["tau"]) == set(planted["tau"])
    for tracer, region in (("amyloid", "frontal"), ("tau", "medial_temporal")):  # where the cortex thins most
        assert -0.05 < slopes[tracer][region] < -0.015
        assert slopes[tracer][region] == min(slopes[tracer].values())
        assert abs(slopes[tracer]["pons"]) < 0.003
    ageless = dataclasses.replace(config, cohort=CohortConfig(phantom=dataclasses.replace(settings, age_atrophy=0.0)))
    assert not any(slope for regions in thinning_slope(ageless).values() for slope in regions.values())
    assert thinning_slope(dataclasses.replace(config, seed=1)) == slopes


def test_the_planted_sex_effect_is_the_tissues_as_far_as_the_region_shows_it(tmp_path):
    config = make_config(tmp_path, cohort=CohortConfig(phantom=PhantomConfig(anatomy_mm=4.0)))
    planted, shares = planted_effects(config), grey_share(config)
    for tracer in LABELS:
        values = {region: share for region, share in shares[tracer].items() if not np.isnan(share)}
        assert all(0.2 < share < 0.9 for share in values.values())
        assert set(REGIONAL[f"{tracer}_sex"]) == set(values)
        ratio = [planted[tracer][r]["sex"] / REGIONAL[f"{tracer}_sex"][r] / share for r, share in values.items()]
        assert np.ptp(ratio) < 1e-6 * np.mean(ratio)  # twice the unit effect, over one reference region
        assert 1.8 < np.mean(ratio) < 3.2
    blurred = dataclasses.replace(config.cohort.phantom, pet_fwhm_mm=(16.0, 16.0))
    coarse = grey_share(dataclasses.replace(config, cohort=CohortConfig(phantom=blurred)))
    assert coarse["amyloid"]["sensorimotor"] < shares["amyloid"]["sensorimotor"]
