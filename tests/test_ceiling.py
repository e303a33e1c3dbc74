"""The ceiling: its population is the phantoms', its posterior holds what it promises, its PET beats the mean PET."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import changed, digests
from scipy import stats

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid
from resdm_suite.apps.ceiling import synthesise_ceiling
from resdm_suite.cohorts.phantom.people import AGE_CENTRE, DIAGNOSES, EDUCATION, MMSE, causes_after, draw_person
from resdm_suite.evaluation.image_quality import read_index, read_volume, score_people
from resdm_suite.evaluation.planted import read_causes
from resdm_suite.paths import sidecar_path, synthetic_path
from resdm_suite.preprocessing import ceiling
from resdm_suite.profiles import CohortConfig, Config, PhantomConfig, load_config

POPULATION = ceiling.draw_population(0, 10_000)


@cache
def latent_people(coupling: float, people: int = 1000) -> pd.DataFrame:
    """People of the generator, without images, and what the ceiling expects of them."""
    settings = PhantomConfig(people=people, coupling=coupling, repeat_visits=0.3)
    config = Config(profile="test", seed=5, cohort=CohortConfig(phantom=settings), root=Path())
    rows = []
    for person in (draw_person(config, index) for index in range(people)):
        visit = person["visits"][-1]
        years = int(visit["session"].removeprefix("ses-M")) / 12
        shown = {"severity": visit["severity"], "age": visit["age"], "sex": person["sex"]}
        weight = ceiling.posterior(POPULATION, **shown, years=years, coupling=coupling)
        later = causes_after(POPULATION, years) | {"positive": POPULATION["positive"]}
        expected = {f"expected_{cause}": weight @ later[cause] for cause in ("load", "stage", "positive")}
        rows.append(visit | shown | expected | {"positive": float(person["positive"]), "years": years})
    return pd.DataFrame(rows)


def test_the_population_is_that_of_the_phantoms():
    first = latent_people(1.0).query("years == 0")
    assert len(first) > 600
    for cause in ("load", "stage", "severity"):
        assert stats.ks_2samp(first[cause], POPULATION[cause]).pvalue > 0.01
    assert POPULATION["positive"].mean() == pytest.approx(latent_people(1.0)["positive"].mean(), abs=0.02)
    drawn = np.bincount(POPULATION["diagnosis"]) / len(POPULATION["diagnosis"])
    people = latent_people(1.0)["diagnosis"].value_counts(normalize=True)
    np.testing.assert_allclose(drawn, people[list(DIAGNOSES)], atol=0.02)
    again = ceiling.draw_population(0, 10_000)
    assert all(np.array_equal(again[key], values) for key, values in POPULATION.items())


@pytest.mark.parametrize("coupling", [1.0, 0.5])
def test_expectations_are_calibrated_among_people_of_the_generator(coupling):
    """The error of a posterior mean is independent of everything known."""
    people = latent_people(coupling)
    for cause in ("load", "stage", "positive"):
        error = people[cause] - people[f"expected_{cause}"]
        assert abs(error.mean()) < 3 * error.std() / np.sqrt(len(people))
        known = {name: people[name] for name in ("severity", "ventricles", "age", "years", f"expected_{cause}")}
        known |= {"severity²": people["severity"] ** 2, "woman": (people["sex"] == "F").astype(float)}
        for name, values in known.items():
            assert abs(error.corr(values)) < 3.3 / np.sqrt(len(people)), name
        assert error.std() < 0.99 * people[cause].std()
    assert people["stage"].corr(people["expected_stage"]) > {1.0: 0.75, 0.5: 0.38}[coupling]


def test_probabilities_of_mmse_and_education_are_those_of_the_generator():
    settings = PhantomConfig(people=3000, repeat_visits=1.0)
    config = Config(profile="test", seed=5, cohort=CohortConfig(phantom=settings), root=Path())
    drawn = [draw_person(config, index) for index in range(3000)]
    people = pd.DataFrame([visit | {"education": one["education"]} for one in drawn for visit in one["visits"]])
    people["years"] = people["session"].str.removeprefix("ses-M").astype(int) / 12
    for (years, diagnosis), part in people.groupby(["years", "diagnosis"]):
        for name, (low, high) in {"education": EDUCATION, "mmse": MMSE}.items():
            values = range(low, high + 1)
            place = [*DIAGNOSES].index(diagnosis)
            chances = [ceiling._given_diagnosis({name: value}, years)[place] for value in values]
            assert sum(chances) == pytest.approx(1)
            tolerance = 3.5 * part[name].std() / np.sqrt(len(part))
            assert part[name].mean() == pytest.approx(np.dot(values, chances), abs=tolerance), (name, diagnosis, years)
    told = ceiling._given_diagnosis({"diagnosis": "MCI", "mmse": None, "education": None}, 0.0)
    assert told.tolist() == [diagnosis == "MCI" for diagnosis in DIAGNOSES]


def test_without_coupling_the_mri_is_uninformative():
    shown = {"age": 74.0, "sex": "F", "coupling": 0.0}
    weights = [ceiling.posterior(POPULATION, severity=severity, **shown) for severity in (0.0, 1.5)]
    np.testing.assert_allclose(weights[0], weights[1])
    assert weights[0].sum() == pytest.approx(1)
    coupled = [ceiling.posterior(POPULATION, severity=s, **shown | {"coupling": 1.0}) for s in (0.0, 1.5)]
    stages = [weight @ POPULATION["stage"] for weight in (*coupled, weights[0])]
    assert stages[0] + 1 < stages[2] + 0.7 < stages[1]


# ── with a cohort on disk ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def config(smoke_folder, tmp_path_factory):
    """The smoke profile, preprocessed."""
    folder = shutil.copytree(smoke_folder, tmp_path_factory.mktemp("ceiling") / "clone")
    return load_config(folder / "configs" / "smoke.yaml")


@pytest.fixture(scope="module")
def out(config):
    return synthesise_ceiling(config, progress=False)


def test_it_is_scored_like_a_method_and_exceeds_the_mean_pet(config, out):
    index = read_index(config)
    scores = pd.read_csv(out / "scores.csv", dtype={"person": str, "session": str})
    pd.testing.assert_frame_equal(scores, score_people(config, "ceiling"), rtol=1e-6)
    keys = ["tracer", "region", "person", "session"]
    template = score_people(config, "template").set_index(keys)
    gain = (scores.set_index(keys)["psnr"] - template["psnr"]).sort_index()
    for tracer in TRACERS:
        assert gain.xs((tracer, "brain")).mean() > 3
        row = index[index[f"present_{tracer}"] == 1].iloc[0]
        path = synthetic_path(out, row["person"], row["session"], row[f"{tracer}_tracer"])
        sidecar = json.loads(sidecar_path(path).read_text())
        assert (sidecar["method"], sidecar["tracer"]) == ("ceiling", tracer)
        assert sidecar["notice"] == "uses the phantom's truth: no method can"
        assert sidecar["intensity"] == {"kind": "fixed", "suvr_range": list(config.preprocess.suvr_range[tracer])}


def test_probabilities_of_the_planted_status_are_those_of_the_posterior(config, out):
    latent = pd.read_csv(out / "latent.csv", dtype={"person": str, "session": str})
    assert not latent.duplicated(["person", "session", "tracer"]).any()
    assert len(latent) == 2 * len(read_index(config))
    cut = json.loads((config.work / "truth" / "truth.json").read_text())["stage_cut"]
    population, causes = ceiling.draw_population(config.seed), read_causes(config).set_index(["person", "session"])
    row = latent[latent["session"] == "ses-M000"].iloc[0]
    about = causes.loc[(row["person"], row["session"])]
    age, sex = AGE_CENTRE + 10 * about["decades"], "F" if about["woman"] else "M"
    weight = ceiling.posterior(population, severity=about["severity"], age=age, sex=sex)
    by_hand = {"amyloid": weight @ population["positive"], "tau": weight @ (population["stage"] > cut)}
    stored = latent[(latent["person"] == row["person"]) & (latent["session"] == row["session"])]
    assert stored.set_index("tracer")["positive"].to_dict() == pytest.approx(by_hand, rel=1e-4)


def test_with_known_causes_it_approaches_the_pet(config):
    """With known load and stage the remaining error is noise, personal uptake, resolution and registration."""
    grid, closer = Grid.of(config.preprocess.grid), {tracer: [] for tracer in TRACERS}
    population, truth = ceiling.draw_population(0, 2000), ceiling.read_truth(config)
    for row in read_index(config, None).query("session == 'ses-M000'").head(6).to_dict("records"):
        person = ceiling.read_truth(config, row["person"])
        record = person["sessions"][0]
        causes = {key: np.array([record[key]]) for key in ("load", "stage", "severity")}
        causes |= {"foretold": causes["severity"], "progression": np.zeros(1), "diagnosis": np.zeros(1, int)}
        causes |= {"positive": np.array([person["positive"]])}
        known, expected = (ceiling.expected_pet(config, row, people, truth) for people in (causes, population))
        assert [known[tracer][1] for tracer in TRACERS] == [person["positive"], record["stage"] > truth["stage_cut"]]
        for tracer in TRACERS:
            if row[f"present_{tracer}"]:
                real = read_volume(config.volumes / row[tracer], grid)
                errors = [np.sqrt(np.mean((pet[tracer][0] - real) ** 2)) for pet in (known, expected)]
                closer[tracer].append(errors)
    for errors in closer.values():
        known, expected = np.mean(errors, axis=0)
        assert known < 0.012
        assert known < 0.9 * expected


def test_the_same_bytes_each_time(config, out):
    before = digests(out)
    synthesise_ceiling(config, progress=False)
    assert digests(out) == before


def test_it_needs_the_truth_of_these_phantoms(config, tmp_path):
    for other, message in (
        ({"cohort": {"kind": "adni"}}, "cohort.kind is adni; the ceiling follows from the truth, which is known of"),
        ({"seed": 1}, "truth.json: the truth of phantoms of other settings"),
        ({"root": tmp_path}, "truth.json: no truth of these phantoms; run `resdm phantom"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            synthesise_ceiling(changed(config, **other))
