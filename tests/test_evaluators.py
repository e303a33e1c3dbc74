"""The evaluators: networks against formulas, folds by person, and tables of readings."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import changed
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.preprocessing import StandardScaler
from stored_cohort import GRID, LABELS, RANGES, make_config, save
from threadpoolctl import threadpool_limits
from torch import nn

from resdm.baselines.regression import RegressionConfig
from resdm.io import write_csv, write_json, write_text
from resdm.settings import TRACERS
from resdm_suite.anatomy import SUMMARY, mni_map, regions
from resdm_suite.evaluation import downstream, fitting
from resdm_suite.evaluation.downstream import draw_folds, evaluate_age, evaluate_sex, evaluate_status, labelled
from resdm_suite.evaluation.fitting import classifier, fit, fit_evaluator, predict, regressor, shifted, youden
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.evaluation.networks import BrainAge, DSNet, spatial_cosine
from resdm_suite.evaluation.readings import COLUMNS, read_readings
from resdm_suite.paths import sidecar_path, synthetic_path
from resdm_suite.profiles import BrainAgeConfig, CohortConfig, EvaluationConfig, EvaluatorConfig

# ── the networks ──────────────────────────────────────────────────────────────────────────────────


def operations(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Floating-point operations of the convolutions, two per multiplication with addition."""
    counts = []
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda conv, _, out: counts.append(conv.weight.numel() * out[0, 0].numel()))
    with torch.device("meta"):
        network.to("meta")(torch.empty(1, 1, *shape))
    return 2.0 * sum(counts)


@pytest.mark.parametrize(("network", "parameters", "flop"), [(DSNet, 0.30e6, 14e9), (BrainAge, 0.89e6, 18e9)])
def test_size_of_the_originals(network, parameters, flop):
    """The published networks at 128³, within 5 %."""
    made = network((128, 128, 128))
    assert sum(weight.numel() for weight in made.parameters()) == pytest.approx(parameters, rel=0.05)
    assert operations(made, (128, 128, 128)) == pytest.approx(flop, rel=0.05)


@pytest.mark.parametrize(("size", "pool", "dsnet", "age"), [
    (128, 1, 3, 4), (64, 1, 4, 4), (32, 1, 4, 4), (32, 2, 4, 4), (24, 1, 3, 3), (16, 1, 4, 4), (17, 2, 4, 4),
])  # fmt: skip
def test_no_map_is_pooled_below_three_voxels(size, pool, dsnet, age):
    """128 → 64 → 32 → 16 → 8 → 3 and 128 → … → 4 as published; small grids omit pooling layers."""
    for network, edge in ((DSNet(3 * (size,), pool=pool), dsnet), (BrainAge(3 * (size,), pool=pool), age)):
        with torch.device("meta"):
            out = network.features.to("meta")(torch.empty(1, 1, size, size, size))
        assert tuple(out.shape[2:]) == 3 * (edge,)
        assert network.head.in_features == (2 if network.__class__ is DSNet else 1) * out[0].numel()


def test_spatial_cosine_follows_its_formula(generator):
    x = torch.randn((2, 3, 4, 5, 6), generator=generator)
    both = np.concatenate([x.double().numpy(), x.double().numpy() ** 2 - 1], axis=1)
    flat = (both / np.linalg.norm(both, axis=1, keepdims=True)).reshape(2, -1)
    cosine = spatial_cosine(x)
    np.testing.assert_allclose(cosine, flat / np.linalg.norm(flat, axis=1, keepdims=True), atol=1e-6)
    voxels = cosine.reshape(2, 6, -1).norm(dim=1)
    np.testing.assert_allclose(voxels, 1 / np.sqrt(4 * 5 * 6), atol=1e-6)  # every voxel weighs the same


def test_logit_scale_is_learned(generator):
    torch.manual_seed(0)
    net = DSNet((16, 16, 16), width=2)
    x = torch.rand((2, 1, 16, 16, 16), generator=generator)
    bare = net.head(spatial_cosine(net.features(x)))
    torch.testing.assert_close(net(x), 10 * bare)
    assert bare.abs().max() < 1  # what the scale is for
    net.loss(x, torch.tensor([0.0, 1.0])).backward()
    assert net.log_scale.grad != 0
    torch.testing.assert_close(net.predict(x), torch.sigmoid(net(x)[:, 1] - net(x)[:, 0]))


def test_brain_age_starts_at_the_mean_age_with_its_loss_in_standard_deviations(generator):
    net = BrainAge((16, 16, 16), width=2, mean=72.0, std=8.0)
    nn.init.zeros_(net.head.weight)
    x = torch.rand((3, 1, 16, 16, 16), generator=generator)
    assert net.predict(x).tolist() == [72.0] * 3
    assert net.loss(x, torch.tensor([72.0, 80.0, 56.0])).item() == pytest.approx((0 + 1 + 2) / 3)


# ── fitting ───────────────────────────────────────────────────────────────────────────────────────


def test_youden():
    labels, scores = np.array([0, 0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    assert youden(labels, scores) == pytest.approx(0.6)  # 2/3 − 0, equal to 1 − 1/3 at 0.25: the higher is taken
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 80), rng.normal(size=80)
    at = youden(labels, scores)
    false, true, _ = roc_curve(labels, scores)
    index = (scores >= at)[labels == 1].mean() - (scores >= at)[labels == 0].mean()
    assert index == pytest.approx((true - false).max())
    assert at not in scores


def test_shifts_are_drawn_per_volume_and_padded_with_zeros():
    volumes = torch.zeros((40, 1, 7, 7, 7))
    volumes[:, 0, 3, 3, 3] = 1
    moved = shifted(volumes, 2, np.random.default_rng(0))
    assert moved.shape == volumes.shape
    places = moved.nonzero()[:, 2:]
    assert len(places) == 40
    assert (places.amin(0).tolist(), places.amax(0).tolist()) == ([1, 1, 1], [5, 5, 5])
    assert len(np.unique(places, axis=0)) > 20
    assert shifted(torch.ones((20, 1, 4, 4, 4)), 3, np.random.default_rng(0)).amin() == 0
    assert shifted(volumes, 0, np.random.default_rng(0)) is volumes


def test_brain_age_loses_its_mean_error_only():
    ages = np.array([60.0, 70.0, 80.0])
    one = regressor(lambda x: x, 5, np.arange(3), ages, np.array([66.0, 72.0, 78.0]))
    assert (one.offset, one.quality, one.n_held_out) == (pytest.approx(2.0), pytest.approx(1.0), 3)
    assert one.answer(np.array([66.0, 78.0])).tolist() == pytest.approx([64.0, 76.0])
    assert regressor(lambda x: x, 5, np.arange(3), ages, np.full(3, 70.0)).p == 1.0


def test_p_of_an_evaluator_against_chance():
    labels = np.repeat([0, 1], 4)
    sure = classifier(lambda x: x, 5, np.arange(8), labels, np.arange(8.0))
    assert (sure.quality, sure.p) == (1.0, pytest.approx(1 / 70))  # one of 8! / (4! 4!) orders
    assert classifier(lambda x: x, 5, np.arange(8), labels, np.arange(8.0)[::-1]).p == 1.0


def test_visits_do_not_lower_p():
    """Three equal visits of everyone give the p of one visit; sessions as units would give a lower one."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 10)
    scores, who = labels + 0.8 * rng.normal(size=20), np.arange(20)
    for finish, truth in ((classifier, labels), (regressor, 70.0 + 5 * labels + rng.normal(size=20))):
        once = finish(lambda x: x, 5, who, truth, scores)
        thrice = finish(lambda x: x, 5, np.repeat(who, 3), np.repeat(truth, 3), np.repeat(scores, 3))
        sessions = finish(lambda x: x, 5, np.arange(60), np.repeat(truth, 3), np.repeat(scores, 3))
        assert (thrice.quality, thrice.p) == (pytest.approx(once.quality), pytest.approx(once.p))
        assert sessions.p < once.p / 2
        assert (once.n_held_out, thrice.n_held_out) == (20, 60)


def test_a_status_that_changed_between_visits_counts_in_both_classes():
    people, labels = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 0, 1, 1])
    one = classifier(lambda x: x, 5, people, labels, np.array([0.1, 0.8, 0.2, 0.4, 0.1, 0.3]))
    assert one.quality == pytest.approx(3 / 4)  # 0.1 and 0.3 against 0.8 and 0.2


def test_both_networks_learn(generator):
    """A planted patch and its strength are recognised in people outside the training set."""
    strength = torch.rand(60, generator=generator)
    volumes = 0.3 + 0.05 * torch.randn((60, 1, 12, 12, 12), generator=generator)
    volumes[:, :, 3:7, 3:7, 3:7] += 0.4 * strength[:, None, None, None, None]
    settings = EvaluatorConfig(epochs=20, learning_rate=2e-3, shift_voxels=0)
    torch.manual_seed(0)
    sick, age = DSNet((12,) * 3, width=4), BrainAge((12,) * 3, width=4, mean=75.0, std=6.0)
    fit(sick, volumes[:40], (strength[:40] > 0.5).float(), settings, seed=0)
    fit(age, volumes[:40], 65 + 20 * strength[:40], settings, seed=0)
    unseen = (strength[40:] > 0.5).numpy()
    assert ((predict(sick, volumes[40:]) > 0.5) == unseen).mean() >= 0.9
    assert np.corrcoef(predict(age, volumes[40:]), strength[40:])[0, 1] > 0.9


# ── a stored cohort ───────────────────────────────────────────────────────────────────────────────


CONDITIONS = {"factual": lambda age, sex: (age, sex), "no_sex": lambda age, sex: (age, None)}


def make_people(root, train=14, test=4):
    """Every third person has two visits; the load is high where the status is 1; a status or scan is missing at times.

    The planted status is another one. There is one validation person. Predictions of the method `copy` and of the
    `ceiling` equal the real PET; `late` is unfinished.
    """
    evaluation = EvaluationConfig(
        folds=3, status=EvaluatorConfig(width=2, epochs=2, shift_voxels=1),
        sex=EvaluatorConfig(width=2, epochs=1, shift_voxels=0),
        age=BrainAgeConfig(width=2, epochs=1, batch_size=8, shift_voxels=0),
    )  # fmt: skip
    config = make_config(root, evaluation=evaluation, methods={"copy": RegressionConfig(), "late": RegressionConfig()})
    config = changed(config, training={"threads": 1})
    brain, masks, rng, rows, truth = mni_map("brain", GRID), regions(GRID), np.random.default_rng(0), [], []
    for i in range(train + test + 1):
        split = "train" if i < train else "validation" if i == train else "test"
        for visit in range(2 if i % 3 == 0 else 1):
            who, session, status = f"sub-{i:04d}", f"ses-M{12 * visit:03d}", float(i % 2)
            row = {"person": who, "session": session, "split": split, "age": 60.0 + i + visit, "sex": "FM"[i // 2 % 2]}
            planted = {f"{tracer}_positive": float(i % 4 in (1, 2)) for tracer in LABELS}
            truth.append({key: row[key] for key in ("person", "session", "age", "sex")} | planted)
            row["t1w"] = f"{who}/{session}/anat/{who}_{session}_T1w.nii.gz"
            save(config.volumes / row["t1w"], rng.uniform(0, 1, GRID.shape) * brain)
            for tracer, label in LABELS.items():
                present = not (tracer == "tau" and i in (1, train + 2))
                path = f"{who}/{session}/pet/{who}_{session}_trc-{label}_pet.nii.gz"
                row |= {f"present_{tracer}": int(present), f"{tracer}_tracer": label if present else ""}
                row |= {tracer: path if present else "", f"{tracer}_status": status if i != 2 else None}
                if present:
                    load = sum(masks[name] for name in SUMMARY[tracer]) * 0.4 * status
                    pet = np.clip(0.3 + load + 0.05 * rng.normal(size=GRID.shape), 0, 1) * brain
                    save(config.volumes / path, pet, suvr_range=RANGES[tracer])
                    for condition, prompted in CONDITIONS.items() if split == "test" else ():
                        made = save(synthetic_path(config.predictions("copy", condition), who, session, label), pet)
                        save(synthetic_path(config.predictions("ceiling"), who, session, label), pet)
                        prompt = dict(zip(("age", "sex"), prompted(row["age"], row["sex"]), strict=True))
                        write_json(sidecar_path(made), {"prompt": prompt})
            rows.append(row)
    for tracer in TRACERS:
        save(config.volumes / f"template_{tracer}.nii.gz", 0.4 * brain)
    for folder in (config.predictions("ceiling"), *(config.predictions("copy", condition) for condition in CONDITIONS)):
        write_text(folder / "scores.csv", "")
    people = pd.DataFrame(truth).assign(amyloid_tracer=LABELS["amyloid"], load=0.0, stage=0.0, severity=0.0)
    write_csv(config.work / "truth" / "people.csv", people)
    write_json(config.work / "truth" / "truth.json", {"age_centre": 70.0, "planted": {key: {} for key in TRACERS}})
    write_text(config.work / "truth" / "regional.csv", "")
    latent = people[["person", "session"]].merge(pd.DataFrame({"tracer": TRACERS}), how="cross")
    write_csv(config.predictions("ceiling") / "latent.csv", latent.assign(positive=np.linspace(0, 1, len(latent))))
    save(synthetic_path(config.predictions("late"), "sub-0015", "ses-M000", "18FAV45"), 0.1 * brain)  # unfinished
    write_csv(config.volumes / "index.csv", pd.DataFrame(rows))
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = make_people(tmp_path_factory.mktemp("people"))
    downstream.fit_evaluators(config, progress=False)
    for evaluate in (evaluate_status, evaluate_sex, evaluate_age):
        evaluate(config, progress=False)
    return config


def table(config, name):
    return pd.read_csv(config.evaluation_folder / f"{name}.csv")


def test_folds_are_by_person_with_repeat_visits(config):
    train = labelled(config, "train", "amyloid", "label")
    assert train["person"].duplicated().any(), "the test needs repeat visits"
    assert "sub-0002" not in set(train["person"]), "no status, no label"
    folds = draw_folds(config, train, "amyloid status")
    people = [set(train["person"].iloc[held_out]) for _, held_out in folds]
    assert sorted(row for _, held_out in folds for row in held_out) == list(range(len(train)))
    assert sum(map(len, people)) == len(set.union(*people)) == train["person"].nunique()
    for rows, held_out in folds:
        assert not set(train["person"].iloc[rows]) & set(train["person"].iloc[held_out])
        assert set(train["label"].iloc[held_out]) == set(train["label"].iloc[rows]) == {0, 1}
    again = draw_folds(config, train, "amyloid status")
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, again, strict=True))
    other = draw_folds(changed(config, seed=1), train, "amyloid status")
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(folds, other, strict=True))


def test_leaks_are_refused(config):
    index, train = read_index(config, None), labelled(config, "train", "amyloid", "label")
    folds = draw_folds(config, train, "amyloid status")
    downstream.check_folds(train, folds, index)
    first, second = train.index[train["person"] == "sub-0000"]
    rest = np.setdiff1d(np.arange(len(train)), [first, second])
    with pytest.raises(downstream.LeakageError, match="fold 0: sub-0000 would be trained on and held out"):
        downstream.check_folds(train, [(np.append(rest, first), np.array([second]))], index)
    with pytest.raises(downstream.LeakageError, match="sub-0000 is held out in the folds 0 and 1"):
        downstream.check_folds(train, [(rest, np.array([first])), (rest, np.array([second]))], index)
    later = (index["person"] == "sub-0003") & (index["session"] != "ses-M000")
    leaking = index.assign(split=index["split"].mask(later, "test"))
    with pytest.raises(downstream.LeakageError, match="sub-0003 is in fold"):
        downstream.check_folds(train, folds, leaking)


def test_no_test_or_validation_volume_is_trained_on(tmp_path, monkeypatch):
    """Spies on what reaches a fit: volumes of training people alone, in a fold those of its people."""
    config, seen = make_people(tmp_path), []
    index = read_index(config, None)
    owner = {}
    for row in index.to_dict("records"):
        for column in ("t1w", *(tracer for tracer in TRACERS if row[f"present_{tracer}"])):
            scan = downstream.read_volumes(config, [config.volumes / row[column]])
            owner[scan.numpy().tobytes()] = (row["person"], row["split"], column)

    def read(volumes):
        seen.append([owner[volume[None].numpy().tobytes()] for volume in volumes])
        return volumes

    fit_mri = downstream._fit_mri
    monkeypatch.setattr(fitting, "fit", lambda network, volumes, *rest: fit(network, read(volumes), *rest))
    monkeypatch.setattr(downstream, "_fit_mri", lambda volumes, *rest: fit_mri(read(volumes), *rest))
    downstream.fit_evaluators(config, progress=False)
    networks = 2 * (2 * 3 + 2)  # tracers × (targets × folds + sex and age)
    assert len(seen) == networks
    evaluate_status(config, progress=False)
    assert len(seen) == networks + 2 * 2 * 3, "scoring fits the regressions on MRI, and no network again"
    assert {split for fitted in seen for _, split, _ in fitted} == {"train"}
    for fitted in seen:
        assert len({column for *_, column in fitted}) == 1
        assert len({who for who, *_ in fitted}) < len(fitted), "repeat visits are among them"


def test_status_from_the_mri_is_ridge_regression_of_all_voxels():
    rng = np.random.default_rng(0)
    latent, people = rng.normal(size=(60, 3)), np.repeat(np.arange(30), 2)
    volumes = 0.5 + 0.1 * latent @ rng.normal(size=(3, 120)) + 0.05 * rng.normal(size=(60, 120))
    volumes[:, :5] = 0.5 + 0.001 * rng.normal(size=(60, 5))  # noise alone
    labels = (latent[:, 0] + 0.5 * rng.normal(size=60) > 0).astype(float)
    answer = downstream._fit_mri(torch.from_numpy(volumes[:40]).reshape(40, 1, 4, 5, 6), labels[:40], people[:40])
    scores = answer(torch.from_numpy(volumes[40:]).reshape(20, 1, 4, 5, 6))
    grid = {"alpha": 115 * downstream._PENALTIES}  # the kernel is divided by the number of voxels that vary
    search = GridSearchCV(Ridge(), grid, cv=GroupKFold(5), scoring="neg_mean_squared_error")
    scale = StandardScaler().fit(volumes[:40, 5:])
    search.fit(scale.transform(volumes[:40, 5:]), labels[:40], groups=people[:40])
    assert search.best_params_["alpha"] not in grid["alpha"][[0, -1]]
    np.testing.assert_allclose(scores, search.predict(scale.transform(volumes[40:, 5:])).clip(0, 1), atol=1e-8)
    assert roc_auc_score(labels[40:], scores) > 0.8


def test_status_from_the_mri_is_the_same_with_any_number_of_threads():
    rng = np.random.default_rng(0)
    volumes = torch.from_numpy(rng.normal(size=(210, 1, 20, 20, 20)).astype(np.float32))
    labels, scores = rng.integers(0, 2, 210), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            scores.append(downstream._fit_mri(volumes, labels, np.arange(210))(volumes).tobytes())
    assert scores[0] == scores[1]


def test_status_table(config):
    scores, targets = table(config, "status"), ("label", "planted")
    test = {(target, t): labelled(config, "test", t, target) for target in targets for t in TRACERS}
    assert len(test["label", "tau"]) == len(test["label", "amyloid"]) - 1, "a person without tau PET"
    for (target, source, tracer, _), part in scores.groupby(["target", "source", "tracer", "fold"]):
        sessions = test[target, tracer]
        for column in ("person", "session", "age", "sex", "label"):
            assert part[column].tolist() == sessions[column].tolist(), (source, column)
    assert set(zip(scores["target"], scores["source"], strict=True)) == {
        *((target, source) for target in targets for source in SOURCES), ("planted", "posterior"),
    }, "late is not finished"  # fmt: skip
    assert set(scores["fold"]) == {0, 1, 2}
    keys = ["target", "fold", "tracer"]
    wide = scores.pivot_table(index=[*keys, "person", "session"], columns="source", values="score")
    np.testing.assert_array_equal(wide["real"], wide["copy"])  # the same volumes by the same networks
    np.testing.assert_array_equal(wide["real"], wide["ceiling"])
    assert wide["template"].groupby(level=keys).nunique().eq(1).all(), "one image for everyone"
    assert wide[["mri", "age_sex"]].nunique().gt(4).all()
    folds = table(config, "status_folds")
    assert len(folds) == 2 * 3 * 2 * 3
    merged = scores.merge(folds, on=["fold", "target", "source", "tracer"], suffixes=("", "_fold"))
    np.testing.assert_allclose(merged["threshold"], merged["threshold_fold"])
    sizes = folds.groupby(["target", "tracer"])[["n_train", "n_held_out"]].sum().sum(axis=1) / 9
    assert sizes.to_dict() == {key: len(labelled(config, "train", key[1], key[0])) for key in test}


SOURCES = ("real", "copy", "template", "ceiling", "mri", "age_sex", "majority")


def test_planted_status_is_the_truth_with_its_own_classifiers(config):
    truth = pd.read_csv(config.work / "truth" / "people.csv").set_index(["person", "session"])
    scores = table(config, "status").set_index(["person", "session"])
    planted = scores[scores["target"] == "planted"]
    for tracer, part in planted.groupby("tracer"):
        assert part["label"].tolist() == truth.loc[part.index, f"{tracer}_positive"].tolist()
    assert "sub-0002" in set(labelled(config, "train", "tau", "planted")["person"]), "no label, but a planted status"
    values = {t: scores[(scores["source"] == "real") & (scores["target"] == t)]["score"] for t in ("label", "planted")}
    assert not np.isclose(values["label"].to_numpy(), values["planted"].to_numpy()).any()


def test_majority_is_the_share_of_positives_among_the_training_people(config):
    scores = table(config, "status").query("source == 'majority' and target == 'label'")
    for tracer, part in scores.groupby("tracer"):
        train = labelled(config, "train", tracer, "label")
        for fold, (rows, _) in enumerate(draw_folds(config, train, f"{tracer} status")):
            share = train.iloc[rows].groupby("person")["label"].mean().mean()  # each person once
            here = part[part["fold"] == fold]
            np.testing.assert_allclose(here["score"], share)
            assert ((here["score"] >= here["threshold"]) == (share >= 0.5)).all()


def test_the_posterior_is_the_stored_one_of_every_test_session(config, tmp_path):
    latent = pd.read_csv(config.predictions("ceiling") / "latent.csv").set_index(["person", "session", "tracer"])
    scores = table(config, "status").query("source == 'posterior'").set_index(["person", "session", "tracer"])
    np.testing.assert_allclose(scores["score"], latent.loc[scores.index, "positive"])
    other = make_people(tmp_path)
    path = other.predictions("ceiling") / "latent.csv"
    write_csv(path, latent.reset_index().query("person != 'sub-0016'"))
    with pytest.raises(ValueError, match=r"latent\.csv: no amyloid probability of sub-0016 ses-M000; run `resdm ceil"):
        evaluate_status(other, progress=False)
    path.unlink()
    evaluate_status(other, progress=False)
    assert "posterior" not in set(table(other, "status")["source"])


def test_sex_and_age_tables(config):
    index = read_index(config).set_index(["person", "session"])
    for name in ("sex", "sex_folds", "age", "age_folds"):
        assert list(table(config, name)) == list(COLUMNS[name])
    sex, age = table(config, "sex"), table(config, "age")
    for frame, value in ((sex, "score"), (age, "predicted")):
        pairs = set(zip(frame["source"], frame["condition"], strict=True))
        assert pairs == {("real", "real"), ("copy", "factual"), ("copy", "no_sex")}
        wide = frame.pivot_table(index=["tracer", "person", "session"], columns="condition", values=value)
        np.testing.assert_array_equal(wide["real"], wide["no_sex"])
    people = index.loc[list(zip(sex["person"], sex["session"], strict=True))]
    assert (people["sex"].eq("M").to_numpy() == sex["label"]).all()
    factual = (sex["condition"] == "factual").to_numpy()
    assert (sex["prompt"][factual].to_numpy() == people["sex"][factual].to_numpy()).all()
    assert sex["prompt"][~factual].isna().all()  # no prompt for real PET, and no sex under no_sex
    synthetic = age["condition"] != "real"
    assert age["prompt_age"][synthetic].tolist() == age["age"][synthetic].tolist()
    assert age["prompt_age"][~synthetic].isna().all()


def test_same_seed_same_bytes_and_stale_evaluators_are_fitted_again(config, tmp_path, monkeypatch):
    train = labelled(config, "train", "tau", "sex")
    fold = draw_folds(config, train, "sex in tau PET")[0]
    volumes = partial(downstream.read_volumes, config, [config.volumes / path for path in train["tau"]])
    epochs = []

    def again(profile, scans=volumes):
        known = train["person"].to_numpy(), train["label"].to_numpy()
        one = fit_evaluator(profile, "sex", "sex_tau", scans, *known, fold, lambda: epochs.append(1))
        return one, (profile.evaluation_folder / "models" / "sex_tau.safetensors").read_bytes()

    elsewhere = changed(config, root=tmp_path)
    (tmp_path / "work" / "tiny").mkdir(parents=True)
    (elsewhere.volumes).symlink_to(config.volumes)
    first, stored = again(config, scans=None)  # what is stored needs no volume
    assert len(epochs) == config.evaluation.sex.epochs, "the bar continues"
    fitted, fresh = again(elsewhere)
    assert fresh == stored
    assert fitted.card == first.card
    np.testing.assert_array_equal(fitted.answer(volumes()), first.answer(volumes()))
    assert again(changed(elsewhere, seed=1))[1] != stored
    assert again(changed(elsewhere, evaluation={"sex": {"learning_rate": 1e-4}}))[1] != stored
    assert again(elsewhere)[1] == stored
    monkeypatch.setattr(fitting, "REVISION", fitting.REVISION + 1)
    with pytest.raises(TypeError):  # it asks for the volumes, to fit again
        again(config, scans=None)


@pytest.mark.parametrize(("columns", "protocols", "message"), [
    ({"tau_status": 0}, (evaluate_status,), "13 and 0 training people of the two classes are one class only"),
    ({"present_tau": 0}, (evaluate_status, evaluate_sex, evaluate_age), "session has both tau PET and "),
])  # fmt: skip
def test_a_tracer_that_these_people_do_not_define_is_left_out(tmp_path, capsys, columns, protocols, message):
    config = changed(make_people(tmp_path), cohort=CohortConfig(kind="csv"))
    (config.work / "truth" / "people.csv").unlink()
    path = config.volumes / "index.csv"
    write_csv(path, pd.read_csv(path).assign(**columns))
    for protocol in protocols:
        assert set(pd.read_csv(protocol(config, progress=False))["tracer"]) == {"amyloid"}
        assert message in capsys.readouterr().out
    assert set(read_readings(config, "status")["target"]) == {"label"}, "real people have a label only"
    scanned = {"amyloid"} if "present_tau" in columns else {*TRACERS}
    assert set(downstream.status_of_test_people(config)["tracer"]) == scanned
    folds = read_readings(config, "status_folds").set_index("tracer")
    assert folds["held_out_auc"].isna().groupby("tracer").sum().to_dict() == {"amyloid": 0, "tau": 1}
    write_csv(path, pd.read_csv(path).assign(amyloid_status=0, sex="M"))
    with pytest.raises(downstream.UndefinedError, match=r"amyloid.* one class only; take people of both"):
        evaluate_sex(config, progress=False)
    evaluate_status(config, progress=False)  # so that Table 4 says it
    assert len(read_readings(config, "status")) == 0
    assert read_readings(config, "status_folds")[["tracer", "held_out_auc"]].isna().sum().tolist() == [0, 2]
    downstream.fit_evaluators(config, progress=False)  # of age


def test_faults_of_the_cohort_are_named(tmp_path):
    config = make_people(tmp_path)
    truth = config.work / "truth" / "people.csv"
    whole = truth.read_bytes()
    write_csv(truth, pd.read_csv(truth).query("person != 'sub-0003'"))  # volumes of other phantoms
    with pytest.raises(ValueError, match=r"people\.csv: no amyloid_positive of sub-0003 ses-M000, whose PET is there"):
        labelled(config, "train", "amyloid", "planted")
    truth.write_bytes(whole)
    many = changed(config, evaluation={"folds": 9})
    with pytest.raises(ValueError, match=r"index\.csv: amyloid status: 6 and 7 training people .* 9 folds; set a"):
        draw_folds(many, labelled(many, "train", "amyloid", "label"), "amyloid status")
    sidecar = next(config.predictions("copy", "factual").rglob("*.json"))
    assert json.loads(sidecar.read_text())["prompt"]
    sidecar.unlink()
    with pytest.raises(FileNotFoundError, match=r"no sidecar beside .*; make the image again"):
        evaluate_sex(config, progress=False)
    index = pd.read_csv(config.volumes / "index.csv")
    write_csv(config.volumes / "index.csv", index.assign(tau_status=np.nan))
    with pytest.raises(downstream.UndefinedError, match=r"index\.csv: no test session has both tau PET and tau_status"):
        labelled(config, "test", "tau", "label")
    write_csv(config.volumes / "index.csv", index.drop(columns="tau_status"))
    with pytest.raises(ValueError, match=r"index\.csv: columns missing: tau_status"):
        evaluate_status(config, progress=False)
