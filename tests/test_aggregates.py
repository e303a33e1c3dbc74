"""Where single people may not be shown: means of groups, and none of fewer people than `MIN_GROUP_SIZE`."""

from __future__ import annotations

import dataclasses

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_resdm
from notebook_cells import draw, run_cells, texts
from stored_cohort import GRID, LABELS, RANGES, make_cohort

from resdm.batch import Batch, Prior
from resdm.io import write_csv
from resdm.method import build_method
from resdm_suite.apps.trace import trace as trace_steps
from resdm_suite.apps.trace import write_trace
from resdm_suite.evaluation.image_quality import read_index, read_scores, read_volume, score_method
from resdm_suite.evaluation.suvr import regional_suvr, to_suvr
from resdm_suite.paths import synthetic_path
from resdm_suite.profiles import MIN_GROUP_SIZE, CohortConfig, PhantomConfig
from resdm_suite.records import NAME
from resdm_suite.reporting import cases
from resdm_suite.reporting.cases import example_volumes, read_trace, regional_comparison, shown_cases
from resdm_suite.reporting.provenance import provenance
from resdm_suite.reporting.style import ERROR_MAP

METHODS = {"ResDM": 0.3, "Base": 0.5}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Twelve test people of ADNI's kind, the first with two visits; amyloid status by the number of the session."""
    config, _ = make_cohort(tmp_path_factory.mktemp("cohort"), METHODS, people=12)
    for method in METHODS:
        score_method(config, method)
    return dataclasses.replace(config, cohort=CohortConfig(kind="adni"))


@pytest.mark.parametrize(("kind", "privacy", "individual"), [
    ("phantom", None, True), ("dlbs", None, True), ("adni", None, False), ("other", None, False),
    ("adni", "individual", True), ("phantom", "aggregate", False),
])  # fmt: skip
def test_who_may_be_shown(config, kind, privacy, individual):
    cohort = CohortConfig(kind=kind, phantom=PhantomConfig() if kind == "phantom" else None)
    assert dataclasses.replace(config, cohort=cohort, privacy=privacy).individual is individual


def test_the_mean_is_that_of_the_group_one_vote_per_person(config):
    scores, index = read_scores(config, METHODS), read_index(config)
    _, shown = shown_cases(config, scores, list(METHODS))
    (case,) = [case for case in shown if case.title.startswith("Aβ-PET, positive")]
    part = index[(index["present_amyloid"] == 1) & (index["amyloid_status"] == 1)]
    assert f"n = {part['person'].nunique()}" in case.title
    visits = [paths for _, paths in part.groupby("person")["amyloid"]]  # sessions of a person averaged first
    people = [np.mean([read_volume(config.volumes / path, GRID) for path in paths], axis=0) for paths in visits]
    assert len(people) >= MIN_GROUP_SIZE
    np.testing.assert_allclose(case.real, to_suvr(np.mean(people, axis=0), RANGES["amyloid"]), atol=1e-5)
    first = part[part["person"] == part["person"].iloc[0]].iloc[0]
    made = synthetic_path(config.predictions("Base"), first["person"], first["session"], LABELS["amyloid"])
    assert not np.allclose(case.synthetic["Base"], to_suvr(read_volume(made, GRID), RANGES["amyloid"]), atol=2e-2)
    chosen = scores.merge(part[["person", "session"]])
    chosen = chosen.query("method == 'Base' and tracer == 'amyloid' and region == 'brain'")
    expected = chosen.groupby("person")[["psnr", "mae"]].mean().mean() * [1, 100]
    assert case.quality["Base"] == pytest.approx(tuple(expected))


def figure_cell(config, methods=tuple(METHODS)):
    """Figure 2 as notebook 04 draws it."""
    given = {"scores": read_scores(config, METHODS), "methods": list(methods), "record": provenance(config, [])}
    return run_cells("04", config, "04-02", "04-10", **given)["figure"]


def test_figure2_shows_means_and_names_nobody(config):
    words = texts(figure_cell(config))
    assert any("nobody is shown alone" in text for text in words)
    assert sum("(n = " in text for text in words) == 4
    for path in config.figures.glob("figure2.*"):
        assert b"sub-" not in path.read_bytes()
    individual = dataclasses.replace(config, privacy="individual")
    caption, shown = shown_cases(individual, read_scores(config, METHODS), list(METHODS))
    assert [case.title for case in shown] == ["Aβ-PET", "tau-PET"]
    assert caption.startswith("One test person")  # shown, but not named


def test_figure2_of_one_person_shares_scales_and_is_the_same_twice(config):
    phantom = dataclasses.replace(config, cohort=CohortConfig(phantom=PhantomConfig()))
    figure = figure_cell(phantom)
    stored = [(config.figures / f"figure2{suffix}").read_bytes() for suffix in (".svg", ".png")]
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        figure_cell(phantom)
    assert stored == [(config.figures / f"figure2{suffix}").read_bytes() for suffix in (".svg", ".png")]
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 2 * 2 * 2 * 3  # tracers, slices, image and error (real: image and T1), columns
    images = [axes.images[0] for axes in pictures]
    errors = [image.get_clim() for image in images if image.get_cmap().name == ERROR_MAP]
    assert len(errors) == 8
    for part in (errors[:4], errors[4:]):  # by tracer
        ((low, high),) = set(part)
        assert low == -high < 0
    pets = [image.get_clim() for image in images if image.get_cmap().name == "inferno"]
    assert len(set(pets[:6])) == len(set(pets[6:])) == 1
    bars = [axes.get_ylabel() for axes in figure.axes if axes not in pictures]
    assert bars == ["SUVR", "error (SUVR)"] * 4
    labels = [axes.get_ylabel() for axes in pictures[::6]]
    assert labels == ["Aβ-PET\nx = +7 mm", "Aβ-PET\nz = +24 mm", "tau-PET\ny = −20 mm", "tau-PET\nz = −16 mm"]


def test_groups_too_small_are_joined_and_fewer_are_not_shown(config):
    scores, path = read_scores(config, METHODS), config.volumes / "index.csv"
    before = path.read_bytes()
    for record in config.work.rglob(NAME):  # with it, predictions made before the index changed are refused
        record.unlink()
    try:
        index = pd.read_csv(path)
        write_csv(path, index.assign(amyloid_status=0, tau_status=np.nan))
        titles = [case.title for case in shown_cases(config, scores, list(METHODS))[1]]
        assert titles == ["Aβ-PET, negative (n = 12)", "tau-PET, all (n = 11)"]
        tested = index[index["split"] == "test"]["person"].unique()
        few = index["person"].isin(tested[: MIN_GROUP_SIZE - 1]) | (index["split"] != "test")
        write_csv(path, index[few])
        caption, shown = shown_cases(config, scores, list(METHODS))
        assert shown == []
        assert f"Fewer than {MIN_GROUP_SIZE} test people" in caption
        given = {"scores": scores, "methods": list(METHODS), "record": {}}
        assert run_cells("04", config, "04-02", "04-10", **given)["figure"].axes == []
    finally:
        path.write_bytes(before)


def test_the_regional_scatter_shows_people_or_groups(config, monkeypatch):
    regional, textures = regional_suvr(config, "ResDM")
    summary = regional.query("tracer == 'amyloid' and region == 'summary'")
    people = summary.groupby("person")[["real", "synthetic"]].mean().sort_values("real")
    halves = [people.iloc[:6].mean(), people.iloc[6:].mean()]  # 12 people: two groups of at least five

    def points(profile):
        return regional_comparison(profile)[0].query("tracer == 'amyloid'")

    np.testing.assert_allclose(points(dataclasses.replace(config, privacy="individual"))[["real", "synthetic"]], people)
    np.testing.assert_allclose(points(config)[["real", "synthetic"]], halves)
    np.testing.assert_allclose(points(config)["real_std"], [people["real"][:6].std(), people["real"][6:].std()])
    few = regional[regional["person"].isin(people.index[: MIN_GROUP_SIZE - 1])]
    monkeypatch.setattr(cases, "regional_suvr", lambda *_: (few, textures))
    no_points, agreement, ratios = regional_comparison(config)
    assert no_points.empty
    names = {"points": no_points, "agreement": agreement, "textures": ratios}
    figure = draw("04_table2_comparison", profile=config, **names)
    assert not len(figure.axes[0].lines[0].get_xdata())


# ── figure 1 ──────────────────────────────────────────────────────────────────────────────────────


class Data(list):
    """Sessions as `CohortDataset` gives them; the second lacks a tau PET."""

    def __init__(self, people):
        rng, present = np.random.default_rng(0), [number != 1 for number in range(len(people))]
        super().__init__(
            {"volumes": torch.from_numpy(rng.random((3, *GRID.shape), dtype=np.float32)), "row": number, "sex": "F",
             "present": torch.tensor([True, tau]), "age": 60.0 + number, "person": f"sub-{number}"}
            for number, tau in enumerate(present)
        )  # fmt: skip
        self.index = pd.DataFrame({"person": people, "present_amyloid": 1, "present_tau": present})


@pytest.fixture(scope="module")
def model(config):
    method = build_method(tiny_resdm(sampling_steps=2), GRID.shape).eval()
    card = type("Card", (), {"config": config})
    return type("Model", (), {"method": method, "card": card, "device": torch.device("cpu"), "grid": GRID})


def test_the_mean_trace_is_over_people(model, config):
    data = Data(["a", "b", "c", "c", "d", "e", "f"])  # b has no tau PET, c a second visit
    out = config.predictions("ResDM")
    write_trace(model, data, out, individual=False)
    trace = read_trace(config)
    assert int(trace["people"]) == 5
    assert "prompts" not in trace
    shown = [data[i] for i in (0, 2, 4, 5, 6)]
    np.testing.assert_allclose(trace["mri"], np.mean([one["volumes"][0].numpy() for one in shown], axis=0), atol=1e-6)
    each = []
    for one in shown:
        prior = Prior((one["age"],), (one["sex"],))
        batch = Batch(one["volumes"][None, :1], one["volumes"][None, 1:], one["present"][None], prior)
        each.append(trace_steps(model.method, batch, torch.Generator().manual_seed(config.seed)))
    for key in ("reverse", "attention", "eta"):
        np.testing.assert_allclose(trace[key], np.mean([tensors[key] for tensors in each], axis=0), atol=1e-5)
    np.testing.assert_array_equal(trace["reverse_t"], each[0]["reverse_t"])
    figure = draw("09_figure1_method", profile=config, trace=trace)
    assert any("Means over 5 test people" in text for text in texts(figure))


def test_examples_and_the_walk_through_take_one_person_or_the_mean_of_five(config):
    index = read_index(config)
    mean = example_volumes(config, "ResDM")
    assert {"T1, mean of 5 people", "tau-PET, real, mean of 5 people"} <= set(mean)
    both = index[(index["present_amyloid"] == 1) & (index["present_tau"] == 1)].drop_duplicates("person")
    expected = np.mean([read_volume(config.volumes / path, GRID) for path in both["t1w"][:5]], axis=0)
    np.testing.assert_allclose(mean["T1, mean of 5 people"], expected, atol=1e-6)
    single = example_volumes(dataclasses.replace(config, privacy="individual"), "ResDM")["T1"]
    np.testing.assert_allclose(single, read_volume(config.volumes / both["t1w"].iloc[0], GRID), atol=1e-6)
    with pytest.raises(ValueError, match="too few training people have all tracers; 5 needed"):
        cases.walkthrough_volumes(config)


def test_a_single_trace_is_not_shown_where_nobody_may_be(model, config):
    out = config.predictions("ResDM")
    write_trace(model, Data(["a", "b", "c"]), out, individual=True)
    assert "people" not in read_trace(dataclasses.replace(config, privacy="individual"))
    with pytest.raises(ValueError, match=r"trace\.npz: the tensors of 1 person.*shows no single people"):
        read_trace(config)
    (out / "trace.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"trace\.npz: damaged"):
        read_trace(config)
    write_trace(model, Data(["a", "b", "c"]), out, individual=False)  # too few: the single one goes
    with pytest.raises(FileNotFoundError, match=r"no trace of 'ResDM'.*or 5 where privacy is aggregate"):
        read_trace(config)
