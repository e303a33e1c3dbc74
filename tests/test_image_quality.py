"""Image quality against scikit-image and hand-computed numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from skimage import metrics
from stored_cohort import GRID, make_cohort, save

from resdm.io import write_csv
from resdm_suite.anatomy import mni_map
from resdm_suite.evaluation import image_quality
from resdm_suite.evaluation.image_quality import mae, psnr, read_scores, read_volume, score_method, score_people, ssim
from resdm_suite.evaluation.suvr import sidecar_range
from resdm_suite.paths import synthetic_path


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    real = rng.random((18, 17, 16)).astype(np.float32)
    return real, np.clip(real + 0.1 * rng.normal(size=real.shape), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), {"ResDM": 0.4})


def test_hand_computed():
    real, synthetic = np.zeros((8, 8, 8)), np.zeros((8, 8, 8))
    synthetic[:4] = 0.1  # half of the voxels are off by 0.1: MAE 0.05, MSE 0.005
    assert mae(real, synthetic) == pytest.approx(0.05)
    assert psnr(real, synthetic) == pytest.approx(10 * np.log10(1 / 0.005))
    assert psnr(real, real) == np.inf
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[3:5] = True
    mask[5] = True  # one slab of three is off
    assert mae(real[mask], synthetic[mask]) == pytest.approx(0.1 / 3)
    assert psnr(real[mask], synthetic[mask]) == pytest.approx(10 * np.log10(3 / 0.01))


def test_equal_to_scikit_image(pair):
    real, synthetic = (volume.astype(np.float64) for volume in pair)
    assert psnr(*pair) == pytest.approx(metrics.peak_signal_noise_ratio(real, synthetic, data_range=1), abs=1e-9)
    mean, similarity = metrics.structural_similarity(real, synthetic, data_range=1, full=True)
    mask = np.zeros(real.shape, dtype=bool)
    mask[4:11, 3:9, 5:12] = True
    brain = image_quality.score_pair(*pair, mask)[1]
    assert ssim(*pair)[0] == pytest.approx(mean, abs=1e-12)
    assert brain["ssim"] == pytest.approx(similarity[mask].mean(), abs=1e-12)


def test_unequal_grids(pair):
    real, synthetic = pair
    for metric in (mae, psnr, ssim):
        with pytest.raises(ValueError, match=r"shapes.*17.*16|same dimensions"):
            metric(real, synthetic[:, :-1])


UNFIT = {  # what is done to array and affine, or to the bytes of the file
    "shape": (lambda v, a: (v[:, :-1], a), r"found \(16, 15, 16\) voxels .*, expected the profile's \(16, 16, 16\)"),
    "affine": (lambda v, a: (v, a + np.diag([0.5, 0, 0, 0])), "expected the profile's"),
    "nan": (lambda v, a: (np.where(v == v.max(), np.nan, v), a), "1 of 4096 voxels are not finite"),
    "suvr": (lambda v, a: (3 * v, a), r"from 0\.\d+ to \d\.\d+; expected \[0, 1\]"),
    **{name: (damage, r"cannot be read as NIfTI .*run its stage again") for name, damage in
       {"half": lambda b: b[: len(b) // 2], "empty": lambda b: b"", "text": lambda b: b"text",
        "hole": lambda b: b[:200] + b[300:]}.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_volumes_that_do_not_fit_are_named(tmp_path, name):
    (change, message), volume = UNFIT[name], np.random.default_rng(0).random(GRID.shape)
    path = tmp_path / "odd_pet.nii.gz"
    if name in ("shape", "affine", "nan", "suvr"):
        save(path, *change(volume, GRID.affine))
    else:
        path.write_bytes(change(save(path, volume).read_bytes()))
    with pytest.raises(ValueError, match=rf"odd_pet\.nii\.gz: .*{message}"):
        read_volume(path, GRID)


def test_scores_are_recomputable_from_the_stored_volumes(cohort):
    config, index = cohort
    scores = read_scores(config, ["ResDM"]) if score_method(config, "ResDM") else None
    # 7 test sessions with amyloid, 6 with tau (sub-0001 has none), two regions each
    assert len(scores) == 2 * (7 + 6)
    assert list(scores) == ["method", "person", "session", "tracer", "region", "mae", "psnr", "ssim"]
    assert not ((scores["person"] == "sub-0001") & (scores["tracer"] == "tau")).any()
    row = index[index["person"] == "sub-0002"].iloc[0]
    real = read_volume(config.volumes / row["tau"], GRID).astype(np.float64)
    path = synthetic_path(config.predictions("ResDM"), row["person"], row["session"], row["tau_tracer"])
    synthetic = read_volume(path, GRID).astype(np.float64)
    brain = mni_map("brain", GRID)
    found = scores[(scores["person"] == "sub-0002") & (scores["tracer"] == "tau")].set_index("region")
    _, similarity = metrics.structural_similarity(real, synthetic, data_range=1, full=True)
    assert found.loc["brain", "ssim"] == pytest.approx(similarity[brain].mean(), rel=1e-8)
    assert found.loc["brain", "mae"] == pytest.approx(np.abs(real - synthetic)[brain].mean(), rel=1e-8)
    whole = metrics.peak_signal_noise_ratio(real, synthetic, data_range=1)
    assert found.loc["whole", "psnr"] == pytest.approx(whole, rel=1e-8)
    assert found.loc["whole", "psnr"] > found.loc["brain", "psnr"]  # background is easy


def test_template_is_scored_like_a_method(cohort):
    config, index = cohort
    scores = score_people(config, "template")
    template = read_volume(config.volumes / "template_amyloid.nii.gz", GRID)
    row = index.iloc[0]
    expected = mae(read_volume(config.volumes / row["amyloid"], GRID), template)
    where = scores.loc[0, ["person", "session", "tracer", "region"]].tolist()
    assert where == [row["person"], row["session"], "amyloid", "whole"]
    assert scores.loc[0, "mae"] == pytest.approx(expected)
    path = score_method(config, "template")
    assert path == config.predictions("template") / "scores.csv"
    pd.testing.assert_frame_equal(read_scores(config, ["template"]).drop(columns="method"), scores, rtol=1e-8)


def test_missing_predictions_and_index_are_named(cohort, tmp_path):
    config, _ = cohort
    with pytest.raises(FileNotFoundError, match=r"sub-0000_ses-M000_trc-18FAV45.*13 of 13 are missing.*synthesis"):
        score_people(config, "Pix2Pix")
    with pytest.raises(ValueError, match=r"no session in split 'validation'; splits there: test, train"):
        image_quality.read_index(config, "validation")
    assert len(image_quality.read_index(config, None)) == 9
    with pytest.raises(FileNotFoundError, match=r"Pix2Pix.*scores\.csv"):
        read_scores(config, ["Pix2Pix"])


@pytest.mark.parametrize(("text", "message"), [
    (b"", "no CSV table"),
    (b"person,session\xff", "no CSV table"),
    (b"a,b\n1,2\n4,5,6\n", "no CSV table"),
    (b"person,session,tracer,region,mae,psnr,ssim\nx,sub-1,ses-1,tau,whole,0,1,1\n", "rows are longer"),
    (b"person,session,tracer,region,mae,psnr,ssim\n", "no row"),
    (b"person,session,tracer,region,mae,psnr,ssim\nsub-1,ses-1,tau,whole,0.1,2", "cut short"),
    ("psnr", "columns missing: psnr"),
    (("mae", ""), "row 3: mae is 'nan', expected a number from 0 to 1.01"),
    (("ssim", "high"), "row 3: ssim is 'high', expected a number"),
    (("psnr", "-inf"), "row 3: psnr is '-inf', expected a number"),
    (("tracer", "fdg"), "row 3: tracer is 'fdg', expected amyloid or tau"),
    (("person", ""), "row 3: person is 'nan', expected text"),
    (("region", "whole"), "row 3: sub-0000 ses-M000 amyloid whole twice"),
])  # fmt: skip
def test_faulty_scores_are_named_with_row_and_remedy(cohort, tmp_path, text, message):
    config, _ = cohort
    rows = pd.read_csv(score_method(config, "ResDM"), dtype=str)
    match text:
        case str():
            text = rows.drop(columns=text).to_csv(index=False).encode()
        case (column, value):
            rows.loc[1, column] = value
            text = rows.to_csv(index=False).encode()
    other = dataclasses.replace(config, root=tmp_path)
    path = other.predictions("ResDM") / "scores.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"^{path}.*{message}.*; run the synthesis of 'ResDM' again$"):
        read_scores(other, ["ResDM"])


@pytest.mark.parametrize(("text", "message"), [
    ("", "damaged .*again"), ("[1]", "no JSON object.*again"), ("{}", "intensity is not stated"),
    ('{"intensity": {"kind": "fixed", "suvr_range": [0, "3"]}}', "a suvr_range of two numbers"),
    ('{"intensity": {"kind": "fixed", "suvr_range": [3, 0]}}', "a suvr_range of two numbers"),
])  # fmt: skip
def test_a_faulty_sidecar_is_named(tmp_path, text, message):
    (tmp_path / "pet.json").write_text(text)
    with pytest.raises(ValueError, match=rf"pet\.json: .*{message}"):
        sidecar_range(tmp_path / "pet.nii.gz")


@pytest.mark.parametrize(("table", "column", "value", "message"), [
    ("scores", "person", "sub-9999", "row 3: sub-9999 ses-M000 is not in index.csv"),
    ("index", "split", "tset", "row 3: split is 'tset', expected train or validation or test"),
    ("index", "amyloid", "", "row 3: amyloid PET without a path or tracer"),
    ("index", "amyloid_status", "0.5", "row 3: amyloid_status is '0.5', expected 0 or 1 or nothing"),
    ("index", "age", "700", "row 3: age is '700.0', expected a number from 0 to 130"),
])  # fmt: skip
def test_faulty_people_are_named(cohort, tmp_path, table, column, value, message):
    config, other = cohort[0], dataclasses.replace(cohort[0], root=tmp_path)
    scores = (score_method(config, "ResDM"), other.predictions("ResDM") / "scores.csv")
    index = (config.volumes / "index.csv", other.volumes / "index.csv")
    for name, (source, path) in {"index": index, "scores": scores}.items():
        rows = pd.read_csv(source, dtype=str)
        if name == table:
            rows.loc[1, column] = value
        write_csv(path, rows)
    with pytest.raises(ValueError, match=message):
        read_scores(other, ["ResDM"])
