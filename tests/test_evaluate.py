"""Evaluation of anyone's synthetic PET: the suite's own predictions score as before, and faulty volumes are found."""

from __future__ import annotations

import json
from contextlib import nullcontext

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from stored_cohort import GRID, RANGES, make_cohort, save

from resdm.io import write_json
from resdm.settings import TRACERS
from resdm_suite.anatomy import REFERENCE, Grid, mni_map, regions
from resdm_suite.apps.cli import main
from resdm_suite.apps.evaluation import _profile
from resdm_suite.cohorts.leakage import LeakageError
from resdm_suite.evaluation import external, faults
from resdm_suite.evaluation.external import EvaluationError, Reader, evaluate, read_cases
from resdm_suite.evaluation.faults import FaultError
from resdm_suite.evaluation.image_quality import score_people
from resdm_suite.evaluation.suvr import regional_suvr
from resdm_suite.paths import SPACE, sidecar_path
from resdm_suite.preprocessing.scans import VolumeError
from resdm_suite.profiles import PreprocessConfig

PEOPLE = 12


def tracer_of(path) -> str:
    return "tau" if "18FAV1451" in path.name else "amyloid"


@pytest.fixture
def config(tmp_path):
    """Volumes and predictions of a method, whose sidecars are as the suite writes them."""
    config, _ = make_cohort(tmp_path, {"A": 0.4}, people=PEOPLE)
    for path in config.predictions("A").rglob("*_pet.nii.gz"):
        intensity = {"kind": "fixed", "suvr_range": list(RANGES[tracer_of(path)])}
        write_json(sidecar_path(path), {"intensity": intensity, "cohort_notice": config.notice})
    return config


@pytest.fixture
def table(config):
    return config.volumes / "index.csv"


@pytest.fixture
def folder(config):
    return config.predictions("A")


def change(folder, function) -> None:
    """Replace every prediction by a function of it and of its number."""
    for number, path in enumerate(sorted(folder.rglob("*_pet.nii.gz"))):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(function(image.get_fdata(dtype=np.float32), number, path), image.affine), path)


def measured(config, table, **folders):
    return evaluate(read_cases(table, folders, config), Reader(config), progress=False)


def test_own_predictions_score_as_before_to_the_last_digit(config, table, folder):
    result = measured(config, table, A=folder)
    keys = ["person", "session", "tracer", "region"]

    def same(own, frame, by):
        frame = frame[frame["method"] == "A"][[*own]]
        own, frame = (one.sort_values(by).reset_index(drop=True) for one in (own, frame))
        pd.testing.assert_frame_equal(own, frame, check_exact=True)

    same(score_people(config, "A"), result.scores, keys)
    regional, textures = regional_suvr(config, "A")
    same(regional, result.regional, keys)
    same(textures, result.textures, keys[:3])
    assert result.faults.empty
    assert set(result.status["source"]) == {"A", "real", "age_sex", *external.CONTROLS}


@pytest.mark.parametrize("split", ["train", "test"])
def test_status_is_classified_by_other_peoples_real_pet(tmp_path, monkeypatch, split):
    """On the table's training people, or else across folds of the test people."""
    monkeypatch.setattr(external, "FOLDS", 3)
    brain, draw = mni_map("brain", GRID), np.random.default_rng(0)
    rows = []
    for number in range(24):
        label, name = int(number % 3 == 0), f"{number:02}_trc-amyloid_pet.nii.gz"
        volume = np.where(brain, 1 + 0.1 * label + 0.05 * draw.standard_normal(GRID.shape), 0)
        save(tmp_path / f"real/sub-{name}", volume, GRID.affine)
        save(tmp_path / f"good/sub-{name}", volume * 0.9, GRID.affine)
        save(tmp_path / f"bad/sub-{name}", np.where(brain, 1.0, 0), GRID.affine)
        rows.append({"person": f"{number:02}", "age": 60 + number, "sex": "FM"[number // 2 % 2], "space": "MNI152",
                     "amyloid": f"real/sub-{name}", "amyloid_status": label,
                     "split": split if number < 12 else "test"})  # fmt: skip
    monkeypatch.setattr(external, "MIN_TRAINING", 12)
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    config = make_cohort(tmp_path / "cohort", {}, people=4)[0]
    status = measured(config, tmp_path / "table.csv", **{name: tmp_path / name for name in ("good", "bad")}).status
    read = status[status["reading"] == "classifier"].set_index("source")
    assert len(read.loc["good"]) == (12 if split == "train" else 24)
    areas = {name: roc_auc_score(read.loc[name, "label"], read.loc[name, "score"]) for name in ("good", "real")}
    assert areas == {"good": 1, "real": 1}
    assert read.loc["bad"].groupby("fold")["score"].nunique().max() == (1 if split == "train" else 3)


def test_another_orientation_and_scale_give_the_same(config, table, folder, tmp_path):
    """In SUVR, with voxels stored from right to left."""
    other, mirror = tmp_path / "other", np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = GRID.shape[0] - 1
    for path in folder.rglob("*_pet.nii.gz"):
        low, high = RANGES[tracer_of(path)]
        suvr = low + (high - low) * nib.load(path).get_fdata(dtype=np.float32)
        save(other / path.name, suvr[::-1], GRID.affine @ mirror)
    result = measured(config, table, A=folder, other=other)
    scores = result.scores.pivot_table("psnr", ["person", "session", "tracer", "region"], "method")
    assert abs(scores["A"] - scores["other"]).max() < 1e-3


def test_controls_know_no_mri_and_no_test_person(config, table, folder):
    result = measured(config, table, A=folder)
    regional = result.regional.query("method == 'template' and tracer == 'amyloid' and region == 'summary'")
    people = regional.groupby("person")[["real", "synthetic"]].mean()
    assert len(people) == PEOPLE
    assert np.corrcoef(people["real"], people["synthetic"])[0, 1] < 0, "a person is part of the mean of the others"
    assert regional["synthetic"].nunique() == external.FOLDS


def test_controls_are_fitted_on_training_people_where_there_are_enough(config, table, folder, monkeypatch):
    monkeypatch.setattr(external, "MIN_TRAINING", 2)
    result = measured(config, table, A=folder)
    template = score_people(config, "template").set_index(["person", "session", "tracer", "region"])["psnr"]
    own = result.scores[result.scores["method"] == "template"].set_index(template.index.names)["psnr"]
    np.testing.assert_allclose(own.loc[template.index], template, rtol=1e-5)


@pytest.mark.parametrize(("fault", "function", "detail"), [
    ("left and right exchanged", lambda volume, *_: volume[::-1], []),
    ("shifted", lambda volume, *_: np.roll(volume, 1, axis=1), ["+12 ", "mm"]),
])  # fmt: skip
def test_misplaced_volumes_are_flagged(config, table, folder, fault, function, detail):
    change(folder, function)
    faults = measured(config, table, A=folder).faults
    assert faults[["tracer", "fault"]].to_numpy().tolist() == [[tracer, fault] for tracer in TRACERS]
    assert all(part in faults["detail"].iloc[0] for part in detail)


def test_visits_of_one_person_count_once(monkeypatch):
    """An asymmetry below 0 by chance, the same at four visits: no fault over ten people, one over forty sessions."""
    grid = Grid((24, 24, 24), 8.0)
    asymmetry, blank = np.repeat(np.random.default_rng(0).normal(-0.1, 0.1, 10), 4), [np.zeros(grid.shape)] * 40
    for visits, found in ((4, 0), (1, 1)):
        values = iter(asymmetry)
        monkeypatch.setattr(faults, "_correlation", lambda *_, values=values: next(values))
        people = [f"sub-{i // visits}" for i in range(40)]
        assert len(list(faults._flipped(blank, blank, people, grid))) == found


def test_another_persons_pet_is_flagged(config, table, folder):
    amyloid = sorted(path for path in folder.rglob("*_pet.nii.gz") if tracer_of(path) == "amyloid")
    one, two = amyloid[-1], amyloid[-2]
    image = nib.load(one).get_fdata(), nib.load(two).get_fdata()
    for path, volume in zip((two, one), image, strict=True):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), GRID.affine), path)
    faults = measured(config, table, A=folder).faults
    assert faults[["tracer", "fault"]].to_numpy().tolist() == [["amyloid", "other people's PET"]]
    pairs = [(one.name[:8], two.name[:8]), (two.name[:8], one.name[:8])]
    assert {*faults["detail"].iloc[0].split("; ")} <= {f"{a} has the PET of {b}" for a, b in pairs}


def without_cerebellum(volume, number, path):
    return np.where(regions(GRID)[REFERENCE[tracer_of(path)]], 0, volume)


@pytest.mark.parametrize(("function", "message"), [
    (lambda volume, *_: volume / volume.max(), "each was scaled by its own range"),
    (without_cerebellum, "lack the reference region"),
    (lambda volume, *_: volume * np.float32(0.2), "median SUVR of 0"),
])  # fmt: skip
def test_volumes_without_suvr_are_refused(config, table, folder, function, message):
    change(folder, function)
    with pytest.raises(FaultError, match=message):
        measured(config, table, A=folder)


def test_a_scale_is_stated_where_no_sidecar_has_one(config, table, folder):
    own = score_people(config, "A").query("tracer == 'amyloid'")
    change(folder, lambda volume, *_: np.where(mni_map("brain", GRID), volume, np.float32(0.3)))  # outside: not scored
    for number, path in enumerate(folder.rglob("*.json")):
        write_json(path, {"intensity": "as reconstructed"}) if number % 2 else path.unlink()
    cases = read_cases(table, {"A": folder}, config)
    cases = cases[cases["tracer"] == "amyloid"]
    with pytest.raises(FaultError, match="--scale"):
        evaluate(cases, Reader(config), progress=False)
    result = evaluate(cases, Reader(config, RANGES["amyloid"]), progress=False)
    assert result.scores[result.scores["method"] == "A"]["psnr"].tolist() == own["psnr"].tolist()


def test_the_scale_of_an_evaluation_is_that_of_the_real_pet_where_stated(table, folder, tmp_path):
    assert _profile(table, {"A": folder}, tmp_path).preprocess.suvr_range == RANGES
    for path in table.parent.rglob("*_pet.json"):
        write_json(path, {"intensity": "as reconstructed" if tracer_of(path) == "tau" else {"kind": "fixed"}})
    assert _profile(table, {"A": folder}, tmp_path).preprocess.suvr_range == PreprocessConfig().suvr_range


@pytest.mark.parametrize(("column", "cell", "error", "message"), [
    ("age", "old", EvaluationError, "row 2: .*age 'old'"),
    ("sex", "", EvaluationError, "row 2: .*sex ''"),
    ("amyloid_status", "2", EvaluationError, "row 2: amyloid_status '2'"),
    ("person", "sub-0001", EvaluationError, "sub-0001 ses-M000 stands twice"),
    ("split", "held-out", EvaluationError, "row 2: split 'held-out'"),
    ("split", "train", LeakageError, "sub-0000 in test and train"),
    ("split", "validation", LeakageError, "sub-0000 in test and validation"),
    ("amyloid", "nowhere.nii.gz", EvaluationError, r"row 2: .*nowhere\.nii\.gz: no such file"),
    ("session", "ses-M999", EvaluationError, "no amyloid PET of sub-0000 ses-M999 by A"),
    ("amyloid_status", "1.0", None, ""),
])  # fmt: skip
def test_a_faulty_table_is_refused(config, table, folder, column, cell, error, message):
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    frame.loc[0, column] = cell
    frame.to_csv(table, index=False)
    with pytest.raises(error, match=message) if error else nullcontext():
        read_cases(table, {"A": folder}, config)


def test_a_table_without_scans_or_methods_is_refused(config, table, folder):
    frame = pd.read_csv(table)
    for names, columns, message in (
        *(([name], frame, f"no method can be called {name}") for name in ("age", "template", "age_sex", "line", "A@b")),
        ([], frame, "no synthetic PET"),
        (["A"], frame.rename(columns={"mmse": "age"}), "column age stands twice"),
        (["A"], frame.assign(amyloid="", tau=""), "nobody to evaluate"),
        (["A"], frame[["person", "age", "sex"]], "no column amyloid or tau"),
    ):
        columns.to_csv(table, index=False)
        with pytest.raises(EvaluationError, match=message):
            read_cases(table, dict.fromkeys(names, folder), config)


@pytest.mark.parametrize(("words", "message"), [
    (["A={folder}", "A={table}"], "one name for two folders (A, A)"),
    (["A={folder}", "--trained-on", "{people}"], "two columns person"),
    (["A={folder}"], "column amyloid stands twice"),
])  # fmt: skip
def test_names_and_columns_that_stand_twice_are_refused(table, folder, tmp_path, capsys, words, message):
    """Of two folders with one name the first was left out; of two columns a traceback or another message told."""
    if "amyloid" in message:
        table.write_text(table.read_text().replace("mmse", "amyloid", 1))
    (tmp_path / "people.csv").write_text("person,person\nsub-1,sub-1\n")
    places = {"folder": folder, "table": table, "people": tmp_path / "people.csv"}
    words = [word.format(**places) for word in words]
    assert main(["evaluate", str(table), *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_something_else_gets_no_evaluation(table, folder, capsys):
    before = sorted(folder.rglob("*"))
    assert main(["evaluate", str(table), f"A={folder}", "--out", str(folder), "--quiet"]) == 2
    assert f"{folder}: not empty and not of an earlier evaluation" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_the_grid_of_an_evaluation_is_that_of_the_first_real_pet(config, table, folder, tmp_path):
    last = pd.read_csv(table)["amyloid"].dropna().iloc[-1]
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.float32), np.eye(4)), config.volumes / last)
    assert _profile(table, {"A": folder}, tmp_path).preprocess.grid == config.preprocess.grid


def test_training_people_are_refused(config, table, folder):
    with pytest.raises(LeakageError, match="2 evaluated people were trained on"):
        read_cases(table, {"A": folder}, config, ["0003", "sub-0004", "sub-9999"])
    frame = pd.read_csv(table)
    train, test = (frame[frame["split"] == split].iloc[0] for split in ("train", "test"))
    image = nib.load(config.volumes / train["amyloid"])
    nib.save(image, config.volumes / test["amyloid"])  # one scan under two names
    with pytest.raises(LeakageError, match="shared by two people"):
        read_cases(table, {"A": folder}, config)


def test_an_image_in_the_space_of_a_t1_is_taken_to_mni(config, table, folder, tmp_path, monkeypatch):
    """The T1's world is displaced by 5 mm; without a T1, nobody knows where the image lies."""
    displaced = np.eye(4)
    displaced[:3, 3] = 5
    for path in folder.rglob("*_pet.nii.gz"):
        name = path.name.replace(f"_space-{SPACE}", "")
        save(tmp_path / "native" / name, nib.load(path).get_fdata(), displaced @ GRID.affine, RANGES[tracer_of(path)])
    frame = pd.read_csv(table)
    frame.drop(columns="t1w").to_csv(table, index=False)
    with pytest.raises(EvaluationError, match="in an unknown space; write MNI152"):
        measured(config, table, A=tmp_path / "native")
    frame.to_csv(table, index=False)
    monkeypatch.setattr(external, "read_t1", lambda path: path)
    monkeypatch.setattr(external, "t1_on_grid", lambda scan, settings, path: (None, displaced, {}))
    places = (folder, tmp_path / "native")
    own, moved = (measured(config, table, A=place).scores.query("method == 'A'") for place in places)
    np.testing.assert_allclose(moved["psnr"], own["psnr"], atol=1e-3)


def test_images_scaled_one_by_one_are_refused_by_their_sidecar(config, table, folder):
    for path in folder.rglob("*.json"):
        write_json(path, {"intensity": {"kind": "minmax", "suvr_range": [0.1, 2.2]}})
    with pytest.raises(EvaluationError, match="scaled to its own range"):
        measured(config, table, A=folder)


@pytest.mark.slow
def test_the_command_writes_one_page_also_without_status(config, table, folder, tmp_path, capsys):
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    frame.drop(columns=[f"{tracer}_status" for tracer in TRACERS], errors="ignore").to_csv(table, index=False)
    out, name = tmp_path / "out", "synthetic"  # also what the volumes of a table are called
    code = main(["evaluate", str(table), f"{name}={folder}", "--out", str(out), "--quiet"])
    assert code == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip() == str(out / "evaluation.html")
    page = (out / "evaluation.html").read_text(encoding="utf-8")
    assert config.notice.replace("'", "&#39;") in page or config.notice in page
    numbers = json.loads((out / "figures" / "evaluation" / "evaluation_metrics.json").read_text(encoding="utf-8"))
    (row,) = [
        row for row in numbers["quality"]
        if (row["method"], row["tracer"], row["region"], row["metric"]) == (name, "amyloid", "brain", "psnr")
    ]  # fmt: skip
    scores = score_people(config, "A").query("tracer == 'amyloid' and region == 'brain'")
    assert row["mean"] == pytest.approx(scores.groupby("person")["psnr"].mean().mean(), rel=1e-9)
    change(folder, without_cerebellum)
    assert main(["evaluate", str(table), f"{name}={folder}", "--out", str(out), "--quiet"]) == 2
    assert "lack the reference region" in capsys.readouterr().err


def test_a_table_can_name_the_volumes(config, table, folder):
    frame = pd.read_csv(table)
    frame = frame[frame["split"] == "test"]
    for tracer in TRACERS:
        made = {path.name[:17]: path for path in folder.rglob("*_pet.nii.gz") if tracer_of(path) == tracer}
        frame[f"synthetic_{tracer}"] = [
            str(made.get(f"{row.person}_{row.session}", "")) if getattr(row, tracer) == getattr(row, tracer) else ""
            for row in frame.itertuples()
        ]
    frame.to_csv(table, index=False)
    result = measured(config, table)
    own = score_people(config, "A")
    assert result.scores[result.scores["method"] == "synthetic"]["mae"].sum() == pytest.approx(own["mae"].sum())


def test_no_scan_is_named(config, table, folder):
    path = next(folder.rglob("*_pet.nii.gz"))
    path.write_bytes(b"nothing")
    with pytest.raises((VolumeError, ValueError), match=path.name):
        measured(config, table, A=folder)
