"""Table 3: variants, seeds, accuracy of status; and the seed of a method."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, tiny_resdm
from notebook_cells import check_latex, run_cells
from scipy import stats
from stored_cohort import make_cohort, make_config
from test_pipeline import config as trainable  # noqa: F401 (a fixture)
from tiny_methods import PlainConfig

from resdm.baselines.released import ReleasedConfig
from resdm.checkpoint import differences
from resdm.io import write_csv
from resdm.training import fingerprint
from resdm_suite.apps.model_folder import load_card, source_settings
from resdm_suite.apps.synthesis import synthesise_method
from resdm_suite.apps.training import train_method
from resdm_suite.evaluation.image_quality import read_scores, score_method
from resdm_suite.evaluation.readings import COLUMNS, readings_path
from resdm_suite.evaluation.statistics import holm, paired_test
from resdm_suite.profiles import Config, load_config
from resdm_suite.reporting import tables
from resdm_suite.reporting.tables import COMPARISON, QUALITY_COLUMNS, VARIANTS, number, with_interval

BLURS = {"Base": 0.7, "+L_high": 0.6, "+prior": 0.5, "ResDM": 0.4, "as_published": 0.47, "per_tracer": 0.52}
BLURS |= {"Base@seed1": 0.9, "ResDM@seed1": 0.45}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    config, _ = make_cohort(tmp_path_factory.mktemp("cohort"), BLURS, people=5)
    methods = {name: tiny_resdm(seed=1 if "@" in name else None) for name in BLURS}
    config = dataclasses.replace(config, methods=methods)
    for method in BLURS:
        score_method(config, method)
    return config


@pytest.fixture(scope="module")
def single(config) -> Config:
    """The same with one seed a variant."""
    return dataclasses.replace(config, methods={name: config.methods[name] for name in VARIANTS})


def people_of(config, method, tracer="tau", metric="psnr") -> pd.Series:
    scores = read_scores(config, [method])
    chosen = scores[(scores["tracer"] == tracer) & (scores["region"] == "brain")]
    return chosen.groupby("person")[metric].mean()


def row_of(frame, method, tracer="tau", region="brain", metric="psnr") -> pd.Series:
    keys = {"method": method, "tracer": tracer, "region": region, "metric": metric}
    (place,) = np.flatnonzero(np.all([frame[key] == value for key, value in keys.items()], axis=0))
    return frame.iloc[place]


def given(config) -> dict:
    """What the cell with the tests before Table 3 defines."""
    variants = [name for name in VARIANTS if tables.seeds_of(config, name)]
    return {"variants": variants, "scores": tables.read_trainings(config, variants)}


def table3(config):
    return run_cells("05", config, without=("05-04", "05-06", "05-07", "05-11"), **given(config))["table"]


@pytest.fixture(scope="module")
def repeated(config):
    return table3(config)


@pytest.fixture(scope="module")
def third(single):
    return table3(single)


def test_numbers_by_hand_with_one_seed(single, third):
    assert list(dict.fromkeys(third.frame["method"])) == list(VARIANTS)
    values, against = {name: people_of(single, name) for name in VARIANTS}, {}
    for other, prefix in (("Base", "base"), ("ResDM", "full")):
        rows = [name for name in VARIANTS if name != other]
        corrected = holm(stats.wilcoxon(values[name] - values[other]).pvalue for name in rows)
        against |= {(prefix, name): p for name, p in zip(rows, corrected, strict=True)}
    for name in VARIANTS:
        row = row_of(third.frame, name)
        assert (row["mean"], row["std"], row["n"]) == pytest.approx((values[name].mean(), values[name].std(), 4))
        assert (row["trainings"], row["sessions"]) == (1, 5)
        assert np.isnan(row["seed_std"])
        for prefix, other in (("base", "Base"), ("full", "ResDM")):
            if name == other:
                assert np.isnan([row[f"{prefix}_difference"], row[f"{prefix}_p"]]).all()
            else:
                assert row[f"{prefix}_difference"] == pytest.approx((values[name] - values[other]).mean())
                assert row[f"{prefix}_p"] == pytest.approx(against[prefix, name])
    titles = [f"Inside the brain: {tracer}{end}" for tracer in ("Aβ-PET", "tau-PET") for end in ("", ", Δ to ResDM")]
    assert [block.title for block in third.blocks[:4]] == titles
    text = third.markdown()
    assert "One training per row" in text
    assert "between trainings" not in text
    assert "<br>" not in text  # one line per cell
    check_latex(third.latex())
    accuracy = third.frame[third.frame["metric"] == "acc"]  # nobody classified
    assert accuracy["mean"].isna().all()
    assert accuracy.loc[~accuracy["method"].isin(["as_published", "per_tracer"]), "paper"].notna().all()
    assert "No ACC: status is not classified yet" in text
    assert [label for _, label in third.blocks[0].columns if "ACC" in label] == []


def test_seeds_are_averaged_by_person_and_their_spread_has_a_column(config, repeated):
    for name, count in (("Base", 2), ("ResDM", 2), ("+prior", 1)):
        one = [people_of(config, seed) for seed in (name, f"{name}@seed1")[:count]]
        row = row_of(repeated.frame, name)
        assert row["trainings"] == count
        assert (row["mean"], row["std"]) == pytest.approx((np.mean(one), np.mean(one, axis=0).std(ddof=1)))
        expected = np.nan if count == 1 else abs(one[0].mean() - one[1].mean()) / np.sqrt(2)
        assert row["seed_std"] == pytest.approx(expected, nan_ok=True)
    base = np.mean([people_of(config, "Base"), people_of(config, "Base@seed1")], axis=0)
    row = row_of(repeated.frame, "+prior")
    assert row["base_difference"] == pytest.approx((people_of(config, "+prior") - base).mean())
    text = repeated.markdown()
    assert "Trainings under other seeds: Base 2, ResDM 2; one for all others." in text
    assert f"| {row_of(repeated.frame, 'ResDM')['seed_std']:.2f} |" in text


def test_intervals_and_tests_of_several_trainings_by_hand(config, repeated):
    """Intervals resample people and, independently of each other, the trainings of both rows; tests average them."""
    full, base = (np.stack([people_of(config, name + end) for end in ("", "@seed1")]) for name in ("ResDM", "Base"))
    people = np.random.default_rng(config.seed).integers(4, size=(10_000, 4))
    drawn = []
    for stream, values in ((1, full), (2, base)):
        weights = np.random.default_rng([config.seed, stream]).multinomial(1, [0.5, 0.5], size=10_000)
        drawn.append((weights.T * np.stack([one[people].mean(axis=1) for one in values])).sum(axis=0))
    row = row_of(repeated.frame, "ResDM")
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(np.quantile(drawn[0], [0.025, 0.975])))
    expected = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    assert (row["base_difference_low"], row["base_difference_high"]) == pytest.approx(tuple(expected))
    assert row["base_p"] >= stats.wilcoxon(full.mean(axis=0) - base.mean(axis=0)).pvalue  # by Holm


def make_status(sources, folds=2) -> pd.DataFrame:
    """Four people and two folds; person a has two sessions. All calls are right except those listed."""
    wrong = {("Base", 0): ("b", "c"), ("Base", 1): ("c",), ("ResDM", 0): ("a1",), ("+prior", 1): ("a1", "a2")}
    wrong |= {("majority", fold): ("a2", "c") for fold in range(folds)}  # those of label 1
    rows = []
    for source in sources:
        for fold in range(folds):
            for place, who in enumerate(("a1", "a2", "b", "c", "d")):
                label = place % 2
                right = who not in wrong.get((source, fold), ())
                person, session = f"sub-000{'abcd'.index(who[0])}", "ses-M012" if who == "a2" else "ses-M000"
                row = {"fold": fold, "source": source, "person": person, "session": session, "tracer": "amyloid"}
                row |= {"target": "label", "age": 70, "sex": "F", "label": label, "threshold": 0.4}
                rows.append(row | {"score": 0.3 + 0.1 * (label == right)})
    return pd.DataFrame(rows)


@pytest.fixture
def readings(single):
    """Where one test stores the readings of status."""
    yield readings_path(single, "status")
    readings_path(single, "status").unlink()


def test_accuracy_by_hand(single, readings):
    status = make_status(["Base", "+prior", "ResDM", "real", "majority"])
    write_csv(readings, pd.concat([status, status.assign(target="planted", score=0.0)]))  # the paper's is the label
    table = table3(single)
    # Base: folds of 100, 0, 0, 100 and 100, 100, 0, 100 % by person; ResDM misses one of two sessions of a
    row = row_of(table.frame, "Base", "amyloid", "status", "acc")
    assert (row["mean"], row["std"], row["n"], row["sessions"]) == (62.5, pytest.approx(25 / np.sqrt(2)), 4, 5)
    row = row_of(table.frame, "ResDM", "amyloid", "status", "acc")
    assert row["mean"] == pytest.approx(100 - 12.5 / 2)
    assert row["base_difference"] == pytest.approx(93.75 - 62.5)
    assert np.isnan(row_of(table.frame, "+L_high", "amyloid", "status", "acc")["mean"])  # nobody classified it
    assert np.isnan(row_of(table.frame, "Base", "tau", "status", "acc")["mean"])
    assert "62.50 ± 17.68" in table.markdown()
    assert "No ACC" not in table.markdown()
    assert "Always the more frequent class is right in 62.5 (Aβ-PET)." in " ".join(table.notes)  # 50, 100, 0, 100


def test_any_part_of_the_variants(single, tmp_path):
    some = dataclasses.replace(single, methods={name: single.methods[name] for name in ("+prior", "ResDM")})
    table = table3(some)
    assert table.frame["base_p"].isna().all()
    missing = "Base, +L_high, as published (no global, no linear path), one model per tracer"
    assert f"Without stored scores: {missing}." in table.markdown()
    with pytest.raises(ValueError, match="no method has scores"):
        run_cells("05", make_config(tmp_path))


def test_no_defined_status_leaves_accuracy_out(single, third, readings):
    write_csv(readings, pd.DataFrame(columns=list(COLUMNS["status"])))
    pd.testing.assert_frame_equal(table3(single).frame, third.frame)


def test_figure3_is_figure2_with_the_variants(single):
    cells = run_cells("05", single, "05-02", "05-11", record={}, **given(single))
    titles = [axes.get_title() for axes in cells["figure"].axes if axes.get_title()]
    assert titles == ["Real", "Base", r"+$L_\mathrm{high}$", "+prior", "ResDM", "as published", "one per tracer"]


# ── the seed of a method ──────────────────────────────────────────────────────────────────────────


def test_a_method_seed_replaces_the_profile_seed_in_training(tmp_path):
    def known(config, name):
        seed, source = config.seeded(name).seed, source_settings(config)
        return fingerprint(config.method(name), config.training, seed, (4, 2), name=name, source=source)

    config = make_config(tmp_path, methods={"X": PlainConfig(), "X@seed5": PlainConfig(seed=5)})
    one, other = known(config, "X@seed5"), known(config, "X")
    assert [config.seeded(name).seed for name in config.methods] == [0, 5]
    assert [row[0] for row in differences(one, other)] == ["seed", "methods.X@seed5", "methods.X"]
    assert one == known(dataclasses.replace(config, seed=5), "X@seed5")
    assert "seed" not in other["methods.X"]  # a model from before there was the option is still the same


def test_a_repetition_is_trained_and_synthesised_as_under_another_profile_seed(trainable):  # noqa: F811
    config = dataclasses.replace(trainable, methods={"X": PlainConfig(), "X@seed5": PlainConfig(seed=5)})
    first, repeated = (train_method(config, name, progress=False) / "history.csv" for name in config.methods)
    assert first.read_bytes() != repeated.read_bytes()
    again = dataclasses.replace(trainable, seed=5, profile="again", methods={"X": PlainConfig()})
    again.volumes.parent.mkdir(parents=True)
    again.volumes.symlink_to(config.volumes)
    assert (train_method(again, "X", progress=False) / "history.csv").read_bytes() == repeated.read_bytes()
    assert load_card(config.model("X@seed5")).config.seed == 5
    folder = synthesise_method(config, "X@seed5", progress=False)
    seeds = [json.loads(path.read_text())["seed"] for path in folder.rglob("*_pet.json")]
    assert set(seeds) == {5}


@pytest.mark.parametrize(("profile", "seeds"), [("phantom", 3), ("phantom128", 3), ("dlbs", 3), ("adni", 3)])
def test_variants_differ_from_resdm_as_the_paper_says_and_larger_profiles_repeat_them(profile, seeds):
    config = load_config(ROOT / "configs" / f"{profile}.yaml")
    full = config.methods["ResDM"]
    assert full.lambda_high > 0
    assert full.prior.fields == ("age", "sex")
    silent = dataclasses.replace(full.prior, fields=())
    assert config.methods["+prior"] == dataclasses.replace(full, lambda_high=0.0)
    assert config.methods["+L_high"] == dataclasses.replace(full, prior=silent)
    assert config.methods["Base"] == dataclasses.replace(full, prior=silent, lambda_high=0.0)
    for variant in (name for name, printed in VARIANTS.items() if printed):
        trained = [name for name in config.methods if name.partition("@")[0] == variant]
        assert len({config.seeded(name).seed for name in trained}) == len(trained) == seeds


def test_each_departure_leaves_one_fault_out():
    methods = load_config(ROOT / "configs" / "released.yaml").methods
    released = methods["released"]
    assert (released.repaired, released.mri_shift, released.prior.context) == ((), 1, "pooled")
    tokens = dataclasses.replace(released.prior, context="tokens")
    for name, change in {
        "+y0": {"repaired": ("input",)}, "+middle": {"repaired": ("middle",)}, "+paired": {"mri_shift": 0},
        "+attention": {"repaired": ("attention",)}, "+tokens": {"repaired": ("attention",), "prior": tokens},
        "+all": {"repaired": ("input", "attention", "middle"), "mri_shift": 0, "prior": tokens},
    }.items():  # fmt: skip
        assert methods[name] == dataclasses.replace(released, **change)


def test_faults_are_compared_with_the_first_network(single):
    config = dataclasses.replace(single, methods={name: ReleasedConfig() for name in ("Base", "+prior")})
    table = run_cells("12", config)["table"]
    for tracer in ("amyloid", "tau"):
        values = {name: people_of(config, name, tracer) for name in ("Base", "+prior", "template")}
        row = row_of(table.frame, "+prior", tracer)
        tests = [paired_test(values[name], values["Base"], seed=config.seed) for name in ("+prior", "template")]
        test = dataclasses.replace(tests[0], p=holm([one.p for one in tests])[0])
        found = row[["mean", "difference", "difference_low", "difference_high", "rank_biserial", "p"]].tolist()
        expected = [test.difference, test.low, test.high, test.rank_biserial, test.p]
        assert found == pytest.approx([values["+prior"].mean(), *expected])
        assert np.isnan(row_of(table.frame, "Base", tracer)["difference"])
        assert with_interval(*found[1:4], p=found[-1]) in table.markdown()
    assert list(table.frame) == [name for name in [*QUALITY_COLUMNS, *COMPARISON] if not name.startswith("paper")]
    with pytest.raises(ValueError, match="no method of kind released"):
        run_cells("12", single)


def test_the_shares_of_augmentation_and_y0_are_printed(single):
    """Four stored methods stand for the network, y_0, moved together, and all corrected."""
    released, corrected = ReleasedConfig(mri_shift=1), ("input", "attention", "middle")
    methods = {"Base": released, "+prior": dataclasses.replace(released, repaired=("input",))}
    methods |= {"+L_high": dataclasses.replace(released, mri_shift=0)}
    methods |= {"ResDM": dataclasses.replace(released, repaired=corrected, mri_shift=0)}
    cells = run_cells("12", dataclasses.replace(single, methods=methods))
    gains = {name: [row_of(cells["frame"], name, t)["difference"] for t in ("amyloid", "tau")] for name in methods}
    together, missing = (cells["shares"][column].tolist() for column in cells["shares"])
    assert together == pytest.approx([100 * a / b for a, b in zip(gains["+L_high"], gains["ResDM"], strict=True)])
    assert missing == pytest.approx(gains["+prior"])
    notes = " ".join(cells["table"].notes)
    assert f"y_0 as an input (dB): Aβ-PET {number(missing[0], 2)}, tau-PET {number(missing[1], 2)}." in notes


@pytest.mark.parametrize(("profile", "changed", "methods"), [
    ("phantom_null", {"age_effect": 0.0, "sex_effect": 0.0, "age_atrophy": 0.0}, ["ResDM"]),
    ("phantom_uncoupled", {"coupling": 0.0}, ["ResDM", "regression", "linear_path", "linear", "demographics"]),
])  # fmt: skip
def test_a_negative_control_is_the_default_phantom_without_an_effect(profile, changed, methods):
    control, default = (load_config(ROOT / "configs" / f"{name}.yaml") for name in (profile, "phantom"))
    assert control.cohort.phantom == dataclasses.replace(default.cohort.phantom, **changed)
    for part in ("seed", "preprocess", "training", "evaluation"):
        assert getattr(control, part) == getattr(default, part)
    assert control.methods == {name: default.methods[name] for name in methods}
