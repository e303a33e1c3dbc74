"""Regional SUVR, agreement and texture against hand-computed numbers."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter
from stored_cohort import GRID, RANGES, make_cohort, save

from resdm_suite.anatomy import REFERENCE, SUMMARY, regions
from resdm_suite.evaluation.image_quality import read_volume
from resdm_suite.evaluation.suvr import (
    regional_agreement,
    regional_means,
    regional_suvr,
    sidecar_range,
    texture,
    texture_summary,
)
from resdm_suite.paths import synthetic_path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), {"ResDM": 0.4, "regression": 0.8})


def test_sidecar(tmp_path):
    path = save(tmp_path / "a_pet.nii.gz", np.zeros(GRID.shape), suvr_range=(0.0, 3.0))
    assert sidecar_range(path) == (0.0, 3.0)
    sidecar = tmp_path / "a_pet.json"
    sidecar.write_text(json.dumps({"intensity": {"kind": "minmax"}}))
    with pytest.raises(ValueError, match=r"a_pet\.json.*minmax.*intensity: fixed"):
        sidecar_range(path)
    sidecar.unlink()
    with pytest.raises(FileNotFoundError, match=r"a_pet\.json"):
        sidecar_range(path)


@pytest.mark.parametrize("tracer", ["amyloid", "tau"])
def test_regional_means(tracer):
    masks = regions(GRID)
    volume = np.zeros(GRID.shape)
    for i, name in enumerate(SUMMARY[tracer], start=1):
        volume[masks[name]] = i
    found = regional_means(volume, GRID, tracer)
    assert [found[name] for name in SUMMARY[tracer]] == pytest.approx(range(1, len(SUMMARY[tracer]) + 1))
    sizes = np.array([masks[name].sum() for name in SUMMARY[tracer]])
    assert found["summary"] == pytest.approx(np.average(range(1, len(sizes) + 1), weights=sizes))  # voxels pooled
    assert found["pons"] == 0


def test_texture_by_hand():
    rng = np.random.default_rng(0)
    real = rng.random((12, 12, 12))
    mask = np.zeros(real.shape, dtype=bool)
    mask[3:9, 3:9, 3:9] = True
    assert texture(real, real, mask) == pytest.approx(1)
    assert texture(real, 0.5 * real + 0.3, mask) == pytest.approx(0.25)
    assert texture(real, gaussian_filter(real, 1), mask) < 0.3
    assert texture(real, real + 0.5 * rng.normal(size=real.shape), mask) > 1.5
    outside = np.where(mask, real, 7.0)  # the step at the mask's edge must not count
    assert texture(real, outside, mask) == pytest.approx(1)
    line = np.zeros((3, 1, 1))
    line[1] = 1  # steps +1, −1
    ramp = np.arange(3.0).reshape(3, 1, 1)  # steps 1, 1
    assert texture(line, 2 * ramp, np.ones((3, 1, 1), dtype=bool)) == pytest.approx(4)
    with pytest.raises(ValueError, match="flat"):
        texture(np.where(mask, 1.0, real), real, mask)


def test_agreement_by_hand():
    frame = pd.DataFrame(
        [("m", who, session, "tau", "frontal", real, made) for who, session, real, made in [
            ("a", "1", 1.0, 1.2), ("a", "2", 1.2, 1.4), ("b", "1", 1.5, 1.5), ("c", "1", 2.0, 2.2)
        ]]
        + [("m", "a", "1", "tau", REFERENCE["tau"], 1.0, 1.0)],
        columns=["method", "person", "session", "tracer", "region", "real", "synthetic"],
    )  # fmt: skip
    result = regional_agreement(frame)
    assert len(result) == 1  # without the reference region
    row = result.iloc[0]
    assert row["n"] == 3
    differences = np.array([0.2, 0.0, 0.2])  # the two sessions of a are one person
    assert row["bias"] == pytest.approx(differences.mean())
    assert row["error"] == pytest.approx(differences.mean())
    interval = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert (row["bias_low"], row["bias_high"]) == pytest.approx(interval)
    assert row["r"] == pytest.approx(np.corrcoef([1.1, 1.5, 2.0], [1.3, 1.5, 2.2])[0, 1])


def test_regional_suvr_of_stored_volumes(cohort):
    config, index = cohort
    regional, textures = regional_suvr(config, "ResDM")
    assert len(textures) == 13
    assert len(regional) == 13 * (len(regions(GRID)) + 1)
    row = index[index["person"] == "sub-0003"].iloc[0]
    path = synthetic_path(config.predictions("ResDM"), "sub-0003", row["session"], row["tau_tracer"])
    low, high = RANGES["tau"]
    expected = low + (high - low) * read_volume(path, GRID)[regions(GRID)["medial_temporal"]].mean()
    chosen = (regional["person"] == "sub-0003") & (regional["tracer"] == "tau")
    found = regional[chosen & (regional["region"] == "medial_temporal")].iloc[0]
    assert found["synthetic"] == pytest.approx(expected, rel=1e-5)


def test_a_blurred_method_and_the_template_lose_what_psnr_forgives(cohort):
    config, _ = cohort
    frames = [regional_suvr(config, method) for method in ("ResDM", "regression", "template")]
    summary = texture_summary(pd.concat([textures for _, textures in frames]))
    amyloid = summary[summary["tracer"] == "amyloid"].set_index("method")
    assert amyloid.loc["regression", "mean"] < amyloid.loc["ResDM", "mean"] < 1
    assert (amyloid["count"] == 6).all()  # people
    values = regional_agreement(pd.concat([regional for regional, _ in frames])).set_index(
        ["method", "tracer", "region"]
    )
    assert values.loc[("ResDM", "amyloid", "summary"), "r"] > 0.9
    assert np.isnan(values.loc[("template", "amyloid", "summary"), "r"])
