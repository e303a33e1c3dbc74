"""Fewer sampling steps: a table of quality and cost, of a profile that does not change."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import steps
from conftest import digests, times, tiny_resdm
from stored_cohort import LABELS, make_config, write_volumes
from tiny_methods import PlainConfig

from resdm.io import write_csv
from resdm.settings import ConfigError, TrainingConfig
from resdm_suite.apps.synthesis import synthesise_method
from resdm_suite.apps.training import train_method
from resdm_suite.evaluation.statistics import interval
from resdm_suite.profiles import CohortConfig, Config

SPLITS = ["train"] * 4 + ["validation"] * 2 + ["test"] * 6
NUMBERS = (15, 2, 1)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """A trained profile with predictions. Five test people: one without tau PET, one with two sessions."""
    training = TrainingConfig(epochs=3, batch_size=1, validate_every=3, accelerator="cpu", threads=1, shift_voxels=0)
    methods = {"ResDM": tiny_resdm(sampling_steps=2, learning_rate=1e-3), "Plain": PlainConfig()}
    config = make_config(tmp_path_factory.mktemp("steps"), training=training, methods=methods)
    write_volumes(config, SPLITS, without_tau=(7,))
    index = pd.read_csv(config.volumes / "index.csv")
    index.loc[11, ["person", "session"]] = ["sub-0010", "ses-M012"]
    write_csv(config.volumes / "index.csv", index)
    for name in ("ResDM", "Plain"):
        train_method(config, name, progress=False)
    synthesise_method(config, "ResDM", progress=False)
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Arguments → the folder of results; those of the whole, and the profile's files before."""
    before = digests(config.work)

    def call(*arguments, source=config, out=None):
        out = out or tmp_path_factory.mktemp("out")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "load_config", lambda name: source)
            steps.main(["--steps", *map(str, NUMBERS), "--out", str(out), *arguments])
        return out

    return call, call(), before


def scored(config, n, tracer) -> pd.DataFrame:
    """A row a test person, means over sessions, from the stored scores."""
    folder = config.work / f"steps/ResDM-test-{n}/predictions/ResDM/factual"
    assert {json.loads(path.read_text())["steps"] for path in folder.rglob("*_pet.json")} == {n}
    scores = pd.read_csv(folder / "scores.csv")
    of = scores[scores["tracer"] == tracer].groupby(["region", "person"])[["psnr", "ssim", "mae"]].mean()
    whole, brain = of.loc["whole"], of.loc["brain"]
    return whole[["psnr", "ssim"]].assign(psnr_brain=brain["psnr"], mae_brain=brain["mae"])


def test_rows_are_scores_by_hand(config, run):
    table = pd.read_csv(run[1] / "steps.csv").set_index(["steps", "tracer"])
    assert table.index.tolist() == [(n, tracer) for tracer in ("amyloid", "tau") for n in NUMBERS]
    assert table["n"].groupby("tracer").unique().map(list).to_dict() == {"amyloid": [5], "tau": [4]}
    for tracer in LABELS:
        people = {n: scored(config, n, tracer) for n in NUMBERS}
        for n in NUMBERS:
            row, gap = table.loc[n, tracer], people[n] - people[15]
            for metric in people[n]:
                for column, values in ((metric, people[n][metric]), (f"{metric}_difference", gap[metric])):
                    found = [row[column], row[f"{column}_low"], row[f"{column}_high"]]
                    expected = [values.mean(), *interval(values.to_numpy(), seed=config.seed)]
                    assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)
            assert 0 < row["suvr_error"] < 1
            assert row["texture"] > 0
        work = [table.loc[n, tracer]["gflop_per_volume"] for n in NUMBERS]
        assert (work[0] - work[2]) / (work[1] - work[2]) == pytest.approx(14, rel=1e-3)  # each step costs the same
    cost = json.loads((config.work / "steps/ResDM-test-15/predictions/ResDM/factual/timing.json").read_text())
    assert table.loc[15, "tau"]["seconds_per_session"] == pytest.approx(cost["seconds_per_session"], rel=1e-5)


def test_a_second_run_makes_no_volume_and_the_profile_stays_as_it_was(config, run, tmp_path):
    call, first, before = run
    volumes = times(config.work / "steps", pattern="*_pet.*")
    assert len(volumes) == len(NUMBERS) * 6 * 2 * 2
    again = call()
    assert volumes == times(config.work / "steps", pattern="*_pet.*")
    for suffix in ("csv", "md", "png", "svg"):
        assert (first / f"steps.{suffix}").read_bytes() == (again / f"steps.{suffix}").read_bytes()
    folder = config.work / "steps" / "ResDM-test-1"
    (folder / "volumes").unlink()
    (folder / "volumes").symlink_to(tmp_path / "elsewhere")  # as if the work folder was moved
    (folder / "predictions/ResDM/factual/timing.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"timing\.json: the cost .*; delete .*ResDM-test-1, run again"):
        call(out=tmp_path)
    shutil.rmtree(folder)
    call(out=tmp_path)
    assert {path: digest for path, digest in digests(config.work).items() if "steps/" not in path} == before


def test_the_page_describes_its_data(config, run):
    page = (run[1] / "steps.md").read_text()
    assert page.splitlines()[2].startswith(config.notice)
    assert "number of steps, 2, was chosen on validation people, not by this page" in page
    out = run[0]("--split", "validation", "--steps", "2")
    assert "was chosen on validation people." in (out / "steps.md").read_text()
    assert pd.read_csv(out / "steps.csv")["n"].tolist() == [2, 2]


def test_errors_name_the_remedy(config, run, tmp_path):
    call = run[0]
    before = digests(config.work)
    for arguments, message in (
        (["--method", "Plain"], "'Plain' is of kind tiny_plain, no residual diffusion; take another"),
        (["--steps", "15", "16"], "--steps 16: 'ResDM' was trained with T = 15; take 1 to that many"),
    ):
        with pytest.raises(ConfigError, match=message):
            call(*arguments)
    private = dataclasses.replace(config, cohort=CohortConfig(kind="other"))
    with pytest.raises(ValueError, match=r"index\.csv: 4 test people with tau PET.*5 or more: take another --split"):
        call(source=private)
    assert digests(config.work) == before


FALLING, RISING = {15: 2, 8: 1, 4: 1, 1: 0}, {15: 0, 8: 1, 4: 1, 1: 2}
LEVEL = {15: 1, 8: 0, 4: 1e-6, 1: 1}


def made_up(lost: dict[str, dict[int, float]], people: int = 30) -> pd.DataFrame:
    """`by_person` rows: the loss of each number of steps in each metric, a value per person, and small noise."""
    draw, frames = np.random.default_rng(0), []
    own = {metric: draw.normal(size=people) for metric in steps.METRICS} | {"texture": 1.0}
    for tracer in LABELS:
        for n in FALLING:
            noise = draw.normal(size=people) * 1e-3
            columns = {m: own[m] - (sign or 1) * (lost[m][n] + noise - noise.mean())
                       for m, (*_, sign) in steps.METRICS.items()}  # fmt: skip
            frame = pd.DataFrame(columns).assign(person=[f"sub-{i:04d}" for i in range(people)], tracer=tracer, steps=n)
            frames.append(frame.sample(frac=1, random_state=n))
    return pd.concat(frames)


def test_the_best_number_of_steps_follows_from_the_scores(tmp_path):
    lost = dict.fromkeys(steps.METRICS, FALLING) | {"suvr_error": RISING, "mae_brain": LEVEL, "texture": RISING}
    config = make_config(tmp_path, cohort=CohortConfig(kind="other"), methods={"ResDM": tiny_resdm()})
    costs = pd.DataFrame({"steps": [15, 8, 4, 1], "seconds_per_session": [3.0, 1.6, 0.8, 0.2],
                          "gflop_per_volume": [150.0, 80.0, 40.0, 12.0], "machine": "a machine"})  # fmt: skip
    lines = steps.report(tmp_path, config, "ResDM", "test", 15, made_up(lost), costs)
    best = (
        "best is 1 step by PSNR of the whole volume, PSNR in the brain and SSIM; 8 steps by MAE in the brain "
        "(4 level); 15 steps by SUVR error and texture."
    )
    assert lines == [
        *(f"- **{tracer}**: {best}" for tracer in LABELS),
        "- 15 steps take 15.0 times as long as 1 step (3 against 0.2 s per person), and 12.5 times the work.",
    ]
    row = pd.read_csv(tmp_path / "steps.csv").set_index(["steps", "tracer"]).loc[1, "tau"]
    assert row["psnr_difference"] == pytest.approx(2)
    assert row["psnr_difference_high"] - row["psnr_difference_low"] < 0.01  # paired
    assert row["psnr_high"] - row["psnr_low"] > 0.4
    page = (tmp_path / "steps.md").read_text()
    assert "other data: not the paper's cohort. " in page
    assert "The profile uses all T steps." in page
    assert "| 1 | tau | 30 | +2.0 [+2.0, +2.0] |" in page
    assert all(line in page for line in lines)
    files = sorted(tmp_path.glob("steps.*"))
    assert [path.suffix for path in files] == [".csv", ".json", ".md", ".png", ".svg"]
    assert not any(b"sub-" in path.read_bytes() for path in files)  # means over people only
