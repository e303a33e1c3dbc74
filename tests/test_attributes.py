"""Further attributes in the prompt: any column of the manifest, from the source to the model and the single scan."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, random_batch, tiny_network, tiny_prior, tiny_resdm
from stored_cohort import make_config

from resdm import attributes
from resdm.baselines.linear import Linear, LinearConfig
from resdm.batch import Batch, Prior
from resdm.checkpoint import load_model, save_model
from resdm.open_prior import prior_module
from resdm.pretraining import pretrain_text_tower
from resdm.prior import PriorConfig, TowerConfig, prompt, prompts
from resdm.residual_diffusion import ResidualDiffusion
from resdm.settings import ConfigError
from resdm_suite.apps.cli import _stated
from resdm_suite.apps.prediction import condition_prior
from resdm_suite.cohorts.leakage import LeakageError, check_attributes
from resdm_suite.cohorts.manifest import ManifestError, read_manifest, write_manifest
from resdm_suite.cohorts.phantom.dataset import settings_digest
from resdm_suite.cohorts.phantom.people import draw_person
from resdm_suite.evaluation.attributes import attribute_pairs, compare_sessions
from resdm_suite.evaluation.classification import auc
from resdm_suite.preprocessing import ceiling
from resdm_suite.preprocessing.dataset import collate, read_attributes
from resdm_suite.profiles import CohortConfig, PhantomConfig, PlantedAttributes, check_field, read_config

N, SHAPE = 120, (16, 16, 16)


def cohort(seed: int = 0, n: int = N) -> Batch:
    """People whose PET follows plasma (a tenth missing), not marker; carriers have half of a unit more plasma."""
    rng = np.random.default_rng(seed)
    standard = rng.normal(size=n)
    carrier = standard + rng.normal(size=n) > 0.3
    pet = 0.5 + 0.08 * standard[:, None, None, None, None] + 0.01 * rng.normal(size=(n, 2, *SHAPE))
    mri = np.clip(0.5 + 0.05 * rng.normal(size=(n, 1, *SHAPE)), 0, 1)
    missing = rng.random(n) < 0.1
    more = {
        "plasma": tuple(None if gone else round(2 + 0.5 * z, 2) for z, gone in zip(standard, missing, strict=True)),
        "marker": tuple(np.round(2 + 0.5 * rng.normal(size=n), 2).tolist()),
        "apoe4": tuple("carrier" if one else "noncarrier" for one in carrier),
    }
    prior = Prior(tuple(rng.uniform(60, 80, n).round(1).tolist()), tuple(rng.choice(["F", "M"], n)), more=more)
    volumes = (torch.tensor(one.clip(0, 1), dtype=torch.float32) for one in (mri, pet))
    people = tuple(f"sub-{i:03d}" for i in range(n))
    return Batch(*volumes, torch.ones((n, 2), dtype=torch.bool), prior, people=people)


def person(batch: Batch, i: int) -> Batch:
    prior = Prior(*(batch.prior.values(f)[i : i + 1] for f in ("age", "sex")),
                  more={name: values[i : i + 1] for name, values in batch.prior.more.items()})  # fmt: skip
    return Batch(batch.mri[i : i + 1], batch.pet[i : i + 1], batch.present[i : i + 1], prior, people=(batch.people[i],))


def errors(method, batch: Batch, prior: Prior) -> np.ndarray:
    """Mean squared error of each person."""
    pet = method.synthesise(batch.mri, prior, torch.Generator().manual_seed(0))
    return (pet - batch.pet).square().mean(dim=(1, 2, 3, 4)).numpy()


def shuffled(prior: Prior, name: str) -> Prior:
    values = {one: prior.values(one) for one in prior.fields}
    return prior.stating(values | {name: values[name][1:] + values[name][:1]})


# ── the sentence and what is known ────────────────────────────────────────────────────────────────


def test_the_sentence_states_attributes_in_one_template():
    head = "Synthesize an Aβ-PET scan for a 74.0-year-old female subject"
    assert prompt("amyloid", 74, "F") == head
    assert prompt("amyloid", 74, "F", plasma=None) == head
    text = prompt("amyloid", 74, "F", education=16.0, waist_cm=92.46, diagnosis="MCI", mmse=None)
    assert text == f"{head} with 16 years of education, waist cm 92.5, a diagnosis of MCI"
    people = Prior((70.0, None), ("F", "M"), more={"plasma": (0.825, None)})
    assert [" with " in text for text in prompts(people)] == [True, True, False, False]


def test_ranges_and_categories_come_from_training_people():
    n = 100
    more = {"dose": tuple(float(i) / 10 for i in range(n)), "points": tuple(float(i % 31) for i in range(n)),
            "site": ("A",) * 60 + ("B",) * 36 + ("C",) * 4}  # fmt: skip
    prior = Prior((70.0,) * n, ("F",) * n, more=more)
    known = attributes.learn(("age", "sex", "dose", "points", "site"), prior)
    low, high, step = known["dose"]
    assert low == 0  # no negative number where nobody has one
    assert 9.9 < high < 13  # beyond the largest value, of no person
    assert (step, known["points"][2], known["site"]) == (0, 1, ["A", "B"])
    assert attributes.unpack(attributes.pack(known)) == known
    kept = attributes.select(prior, ("sex", "site"), known)
    assert kept.fields == ("age", "sex", "site")
    assert kept.age[0] is None
    assert kept.values("site")[-1] is None  # a category of four sessions is not known
    people = [*range(60), *(60 + i % 4 for i in range(36)), *range(96, 100)]  # the 36 of B are sessions of four people
    with pytest.raises(ValueError, match="fewer than two categories of 5 people"):
        attributes.learn(("site",), prior, people)
    near = (2010.0, 2011.0) * (n // 2) + (2010.0,) * (n % 2)
    faults = {(None,) * n: "no value", (3.0,) * n: "one value only", ("x",) * n: "fewer than two"}
    faults |= {near: "has values that are equal in three significant digits"}
    for values, message in faults.items():
        with pytest.raises(ValueError, match=message):
            attributes.learn(("dose",), Prior((70.0,) * n, ("F",) * n, more={"dose": values}))


def test_a_category_stays_text_where_a_part_of_the_people_has_numbers_alone():
    index = pd.DataFrame({"site": ["2", "10"], "dose": ["1", "2"]})
    known = {"site": ["10", "11A", "2"], "dose": [0, 3, 1]}
    assert read_attributes(index, ("site", "dose"), "x", known) == {"site": ["2", "10"], "dose": [1.0, 2.0]}


def test_attributes_of_one_scan_are_checked_by_name_range_and_category():
    known = {"plasma": [0.5, 3.5, 0], "apoe4": ["carrier", "noncarrier"]}
    assert attributes.check_attributes({"plasma": "0.8", "apoe4": "carrier"}, known, "x") == {
        "plasma": 0.8, "apoe4": "carrier"}  # fmt: skip
    wrong = {("plasm", "1"): "no attribute 'plasm'", ("plasma", "high"): "from 0.5 to 3.5"}
    wrong |= {("plasma", "9"): "from 0.5 to 3.5", ("apoe4", "yes"): "expected carrier, noncarrier"}
    for (name, value), message in wrong.items():
        with pytest.raises(ValueError, match=message):
            attributes.check_attributes({name: value}, known, "x")
    assert _stated(["plasma=0.8", " apoe4 = carrier"]) == {"plasma": "0.8", "apoe4": "carrier"}
    for wrong in (["plasma"], ["plasma="], ["plasma=1", "plasma=2"]):
        with pytest.raises(ConfigError, match="NAME=VALUE"):
            _stated(wrong)


def test_small_numbers_are_told_apart():
    prior = Prior((70.0,) * 40, ("F",) * 40, more={"dose": tuple(1e-9 * i for i in range(40))})
    known = attributes.learn(("dose",), prior)
    people, _ = attributes.draw_prompts(50, torch.Generator().manual_seed(0), known)
    assert len({person["dose"] for person in people}) > 35
    assert prompt("tau", dose=4.86e-8).endswith(" with dose 0.0000000486")


@pytest.mark.parametrize(("k", "largest"), [(12, 19), (6, 1.6e6)])
def test_too_many_fields_for_a_sentence_are_refused(k, largest):
    names = [f"measure_{i}" for i in range(k)]
    values = tuple(largest * (1 - i / 40) for i in range(20))
    prior = Prior((70.0,) * 20, ("F",) * 20, more=dict.fromkeys(names, values))
    with pytest.raises(ValueError, match="exceed CLIP's 77 tokens"):
        prior_module(tiny_prior(fields=("age", "sex", *names))).learn(prior, 0)


# ── the methods ───────────────────────────────────────────────────────────────────────────────────


def test_other_columns_change_nothing_for_a_prompt_of_age_and_sex():
    """Weights, random draws and volumes are those of people without further columns."""
    results = []
    for more in ({}, {"plasma": (1.0, None), "apoe4": ("carrier", None)}):
        torch.manual_seed(0)
        method = ResidualDiffusion(tiny_resdm(prior=tiny_prior(dropout=0.3)), (8, 8, 8))
        assert "prior.catalogue" not in method.state_dict()
        batch = random_batch()
        batch = dataclasses.replace(batch, prior=dataclasses.replace(batch.prior, more=more))
        method.prepare(0, train=[batch])
        ((_, loss),) = method.losses(batch, torch.Generator().manual_seed(1))
        results.append((loss, method.eval().synthesise(batch.mri, batch.prior, torch.Generator().manual_seed(2))))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.fixture(scope="module")
def resdm():
    """ResDM before its first step: text tower and linear path are fitted, the network adds almost nothing."""
    torch.manual_seed(0)
    tower = TowerConfig(width=32, heads=2, layers=2, embed_dim=32, pretraining_steps=300)
    fields = ("age", "sex", "plasma", "marker", "apoe4")
    prior = PriorConfig(weights="none", tower=tower, fields=fields, dropout=0.1)
    method = ResidualDiffusion(tiny_resdm(network=tiny_network(linear_path=True), prior=prior, steps=2), SHAPE)
    people = cohort()
    method.prepare(0, train=[person(people, i) for i in range(N)])
    return method.eval()


def test_resdm_reads_the_planted_attribute_and_not_the_null_one(resdm):
    """Of new people, by the linear path's estimate: the change of error has an interval above 0, or one with 0."""
    new, change = cohort(1), {}
    with torch.no_grad():
        own = (resdm.estimate(new.mri, new.prior) - new.pet).square().mean(dim=(1, 2, 3, 4)).numpy()
        for name in ("plasma", "marker"):
            other = resdm.estimate(new.mri, shuffled(new.prior, name)) - new.pet
            change[name] = other.square().mean(dim=(1, 2, 3, 4)).numpy() - own
    middle, half = {k: v.mean() for k, v in change.items()}, {k: 2 * v.std() / N**0.5 for k, v in change.items()}
    assert middle["plasma"] > half["plasma"]
    assert middle["plasma"] > own.mean() / 2
    assert abs(middle["marker"]) < 0.2 * middle["plasma"]


def test_sentence_features_hold_the_age_of_a_long_sentence():
    """A linear map of the features of half of the people recovers the ages of the others."""
    people, fields = cohort(4, n=400).prior, ("age", "sex", "plasma", "marker", "apoe4")
    tower = TowerConfig(width=32, heads=2, layers=3, embed_dim=32, pretraining_steps=400)
    torch.manual_seed(0)
    prior = prior_module(PriorConfig(weights="none", tower=tower, fields=fields))
    prior.learn(people, 0)
    pretrain_text_tower(prior, 0)
    features = prior.sentence_features([prompt("tau", **person) for person in people.people()])
    features, ages = torch.cat([features, torch.ones(400, 1)], 1), torch.tensor(people.age)
    weights = torch.linalg.lstsq(features[::2], ages[::2], driver="gelsd").solution
    assert torch.corrcoef(torch.stack([features[1::2] @ weights, ages[1::2]]))[0, 1] > 0.8


def test_resdm_trains_and_predicts_with_missing_and_unknown_values(resdm, tmp_path):
    people = person(cohort(2), 0)
    for more in ({}, {"plasma": (None,)}, {"plasma": (1.2,), "apoe4": ("never seen",)}):
        batch = dataclasses.replace(people, prior=people.prior.stating(more))
        ((_, loss),) = resdm.losses(batch, torch.Generator().manual_seed(0))
        assert torch.isfinite(loss)
    # a category that no training person has is left out of the sentence, like a missing one
    pets = [resdm.synthesise(people.mri, people.prior.stating(more), torch.Generator().manual_seed(0))
            for more in ({"apoe4": ("never seen",)}, {"apoe4": (None,)}, {"apoe4": ("carrier",)})]  # fmt: skip
    assert torch.equal(pets[0], pets[1])
    assert not torch.equal(pets[1], pets[2])
    # the file alone rebuilds words and ranges
    loaded = load_model(save_model(tmp_path, resdm))
    assert loaded.known == resdm.known == attributes.learn(resdm.config.prior.fields, cohort().prior)
    pet = loaded.synthesise(people.mri, people.prior, torch.Generator().manual_seed(0))
    again = resdm.synthesise(people.mri, people.prior, torch.Generator().manual_seed(0))
    torch.testing.assert_close(pet, again, rtol=0, atol=1e-5)  # its cached sentences are of another kernel


def test_linear_gets_the_same_attributes(tmp_path):
    people, new, error = cohort(), cohort(1), {}
    parts = [[person(people, i) for i in rows] for rows in (range(45), range(45, N))]
    for fields in ((), ("plasma",), ("marker",), ("apoe4",)):
        method = Linear(LinearConfig(fields=("age", "sex", *fields)), SHAPE)
        method.fit(*parts, lambda items: items[0])
        error[fields] = errors(method, new, new.prior)
        if fields == ("plasma",):
            unknown = new.prior.stating({"plasma": (None,) * N})
            assert np.isfinite(errors(method, new, unknown)).all()
            loaded = load_model(save_model(tmp_path, method))
            np.testing.assert_array_equal(errors(loaded, new, new.prior), error[fields])
    mean = {fields: values.mean() for fields, values in error.items()}
    assert mean[("plasma",)] < 0.5 * mean[()]
    assert mean[("apoe4",)] < mean[()]  # follows plasma
    assert abs(mean[("marker",)] - mean[()]) < 0.5 * (mean[()] - mean[("plasma",)])  # fitted to noise of 45 people


def test_conditions_of_any_field():
    more = {"plasma": (1.0, None, 3.0, 2.0), "apoe4": ("carrier", "noncarrier", None, "carrier")}
    prior = {name: condition_prior(name, [70.0] * 4, ["F"] * 4, 0, more)
             for name in ("factual", "no_plasma", "wrong_plasma", "wrong_apoe4", "wrong_sex", "shuffled_plasma",
                          "tracer_only", "shuffled", "age_60")}  # fmt: skip
    assert prior["factual"].values("plasma") == (1.0, None, 3.0, 2.0)
    assert prior["no_plasma"].values("plasma") == (None,) * 4
    assert prior["wrong_plasma"].values("plasma") == (3.0, None, 1.0, 3.0)
    assert prior["wrong_apoe4"].values("apoe4") == ("noncarrier", "carrier", None, "noncarrier")
    assert prior["wrong_sex"].sex == ("M",) * 4
    assert prior["wrong_sex"].more == prior["age_60"].more == more
    assert prior["tracer_only"].people()[0] == dict.fromkeys(("age", "sex", "plasma", "apoe4"))
    assert sorted(map(str, prior["shuffled_plasma"].values("plasma"))) == sorted(map(str, more["plasma"]))
    assert prior["shuffled_plasma"].values("apoe4") == more["apoe4"]
    moved = [more["plasma"].index(value) for value in prior["shuffled"].values("plasma")]
    assert [more["apoe4"][i] for i in moved] == list(prior["shuffled"].values("apoe4"))  # whole people
    with pytest.raises(ConfigError, match="no condition 'no_waist'"):
        condition_prior("no_waist", [70.0] * 4, ["F"] * 4, 0, more)


# ── the columns: manifest, leakage, phantoms ──────────────────────────────────────────────────────


def test_a_further_column_travels_through_manifest_and_index(table):
    path = table()
    frame = read_manifest(path).assign(waist=["92", "", "80", "n/a", "101", "77", "90", "85"], site=list("ABABABAB"))
    write_manifest(frame, path)
    with pytest.raises(ManifestError, match=r"unknown column 'waist'.*prior\.fields"):
        read_manifest(path)
    again = read_manifest(path, attributes=("waist", "site", "education"))
    assert again["site"].tolist() == list("ABABABAB")
    index = again.replace({"waist": {"n/a": "", "77": "inf"}})
    values = read_attributes(index, ("waist", "site", "education"), "index.csv")
    assert values["waist"] == [92.0, None, 80.0, None, 101.0, None, 90.0, 85.0]  # of an infinite number too
    assert values["site"] == list("ABABABAB")
    assert all(isinstance(value, float) for value in values["education"] if value is not None)
    with pytest.raises(ValueError, match=r"index\.csv: no column hip, which prior\.fields"):
        read_attributes(index, ("hip",), "index.csv")
    item = {"volumes": torch.zeros(3, 2, 2, 2), "present": torch.ones(2, dtype=torch.bool), "age": 70.0, "sex": "F",
            "attributes": {"waist": 92.0, "site": "A"}, "row": 0, "person": "sub-1"}  # fmt: skip
    assert collate([item]).prior.people() == [{"age": 70.0, "sex": "F", "waist": 92.0, "site": "A"}]


@pytest.mark.parametrize("name", ["amyloid_suvr", "tau_status", "amyloid_centiloid", "centiloid", "tau_positive",
                                  "braak_stage", "severity", "load", "t1w", "split", "reason", "flags", "Waist",
                                  "a b"])  # fmt: skip
def test_a_field_of_the_target_or_of_no_person_is_refused_by_name(name, tmp_path):
    with pytest.raises(ConfigError, match=f"'{name}'"):
        check_field(name, "x")
    path = tmp_path / "mine.yaml"
    text = "cohort: { kind: other }\nmethods: { Mine: { kind: linear, fields: [age, %s] } }\n"
    path.write_text(text % f'"{name}"')
    with pytest.raises(ConfigError, match=rf"mine\.yaml: methods\.Mine: fields: '{name}'"):
        read_config(path)
    path.write_text(text % "earlier_centiloid")
    assert read_config(path).attributes == ("earlier_centiloid",)


def test_a_column_that_repeats_the_target_is_refused_by_its_values():
    rng, n = np.random.default_rng(0), 40
    suvr = rng.normal(1.2, 0.2, n)
    index = pd.DataFrame({"amyloid_suvr": suvr, "tau_suvr": rng.normal(1.2, 0.2, n), "tau_status": np.nan})
    index["amyloid_status"] = (suvr > 1.2).astype(int)
    index["plasma"] = suvr + rng.normal(0, 0.1, n)  # correlates by 0.9: a measurement of its own
    index["renamed"] = 100 * suvr - 80
    index["visual"] = np.where(index["amyloid_status"] == 1, "yes", "no")
    index["apoe4"] = np.where(rng.random(n) < 0.3, "yes", index["visual"])
    check_attributes(index, ("plasma", "apoe4"), "index.csv")
    for name, message in (("renamed", r"correlates with amyloid_suvr by 1\.000"), ("visual", "equals amyloid_status")):
        with pytest.raises(LeakageError, match=rf"column '{name}'.*{message}.*leave it out"):
            check_attributes(index, ("plasma", name), "index.csv")


def phantoms(**plasma) -> object:
    settings = PhantomConfig(plasma=PlantedAttributes(**plasma)) if plasma else PhantomConfig()
    return make_config(".", cohort=CohortConfig(kind="phantom", phantom=settings))


def test_planted_attributes_come_from_a_stream_of_their_own():
    plain, planted = phantoms(), phantoms(strength=0.7, missing=0.2)
    for index in range(20):
        with_them = draw_person(planted, index)
        assert set(with_them.pop("attributes")) == {"plasma", "marker", "apoe4"}
        assert with_them == draw_person(plain, index)
    assert settings_digest(plain) != settings_digest(planted)
    rows = pd.DataFrame([{**draw_person(planted, i)["attributes"], **draw_person(planted, i)["visits"][0],
                          "positive": draw_person(planted, i)["positive"]} for i in range(400)])  # fmt: skip
    assert rows[["plasma", "marker", "apoe4"]].isna().mean().between(0.12, 0.28).all()
    pathology = rows["load"] / 0.55 + rows["stage"] / 1.03
    assert rows["plasma"].corr(pathology) == pytest.approx(0.7, abs=0.07)
    assert abs(rows["marker"].corr(pathology)) < 0.12
    carriers = rows.dropna(subset="apoe4").assign(carrier=lambda r: r["apoe4"] == "carrier")
    assert carriers.groupby("positive")["carrier"].mean().diff().iloc[-1] > 0.2


def test_the_ceiling_that_knows_an_attribute_predicts_status_better():
    """In the generator's own people; the null marker leaves it as it is."""
    population = ceiling.draw_population(0, 5_000)
    people = [draw_person(phantoms(strength=0.7, missing=0.1), i) for i in range(300)]
    clinic = ("diagnosis",), ("mmse",), ("education",), ("diagnosis", "mmse", "education")
    scores = {names: [] for names in ((), ("marker",), ("apoe4",), ("plasma",), ("plasma", "apoe4"), *clinic)}
    for one in people:
        visit = one["visits"][0]
        for names, values in scores.items():
            known = {name: value for name, value in (one | visit | one["attributes"]).items() if name in names}
            shown = {"severity": visit["severity"], "age": visit["age"], "sex": one["sex"]}
            weight = ceiling.posterior(population, **shown, known=known, strength=0.7)
            values.append(float(weight @ population["positive"]))
    label = np.array([one["positive"] for one in people], dtype=float)
    area = {names: float(auc(label, np.array(values), np.ones(len(label)))) for names, values in scores.items()}
    assert area[("marker",)] == area[()]
    assert area[()] < area[("apoe4",)] < area[("plasma", "apoe4")]
    assert area[("plasma",)] > area[()] + 0.03
    assert scores[clinic[3]] == pytest.approx(scores[clinic[0]]), "of the three, only the diagnosis goes with causes"
    assert abs(area[("education",)] - area[()]) < 0.01
    chances = {names: np.where(label == 1, values, 1 - np.array(values)) for names, values in scores.items()}
    log_chance = {names: np.log(values).mean() for names, values in chances.items()}
    assert log_chance[("diagnosis",)] > log_chance[("mmse",)] > log_chance[()]


# ── notebook 22 ───────────────────────────────────────────────────────────────────────────────────


def test_pairs_of_the_profile_are_methods_that_differ_by_an_attribute():
    config = read_config(ROOT / "configs" / "phantom_attributes.yaml")
    pairs = pd.DataFrame(attribute_pairs(config))
    left_out = pairs[pairs["change"] == "left out"].set_index(["method", "attribute"])["other"]
    assert left_out["ResDM+plasma", "plasma"] == "ResDM"
    assert left_out["linear+all", "plasma, marker, apoe4"] == "linear"
    planted, clinic = ("plasma", "marker", "apoe4"), ("diagnosis", "mmse", "education")
    assert {*left_out["ceiling"].index} == {*planted, *clinic, ", ".join(planted)}
    assert config.ceiling_conditions["with_plasma_marker_apoe4"] == planted
    told = pairs[pairs["change"] != "left out"]
    assert {*told.loc[told["method"] == "ResDM+plasma", "condition"]} == {"shuffled_plasma", "wrong_plasma"}
    assert (told["method"] == told["other"]).all()


def test_worth_of_a_planted_and_of_a_null_attribute():
    """On readings whose error an attribute halves, and on readings that another training moves at random."""
    rng, n = np.random.default_rng(0), 120
    real, label = rng.normal(1.2, 0.2, n), rng.integers(0, 2, n)
    real += 0.2 * label
    rows = []
    for tracer in ("amyloid", "tau"):
        who = {"person": [f"sub-{i:03d}" for i in range(n)], "session": "ses-M000", "tracer": tracer}
        rows.append(pd.DataFrame(who | {"real": real, "label": label, "base": rng.normal(28, 1, n)}))
    frame = pd.concat(rows).sort_values(["person", "session", "tracer"])
    noise = rng.normal(size=(3, len(frame)))
    base = frame.assign(synthetic=frame["real"] + 0.3 * noise[0], psnr=frame["base"])
    null = base.assign(synthetic=base["synthetic"] + 0.01 * noise[1], psnr=base["psnr"] + 0.1 * noise[2])
    good = base.assign(synthetic=base["real"] + 0.1 * noise[0], psnr=base["psnr"] + 1)
    for row in compare_sessions(good, base, seed=0):
        assert row["low"] > 0, row
        assert row["n"] == n
    assert all(row["low"] < 0 < row["high"] for row in compare_sessions(null, base, seed=0))
    with pytest.raises(ValueError, match="not scored on the same sessions"):
        list(compare_sessions(good, base.iloc[2:], seed=0))
