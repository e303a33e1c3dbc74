"""SUVR fidelity: regions from atlases that the tests write, Centiloid in closed form, table and figure."""

from __future__ import annotations

import dataclasses
import json
import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from notebook_cells import check_latex, run_cells
from stored_cohort import make_config, save

from resdm.io import write_csv
from resdm_suite.anatomy import Grid
from resdm_suite.evaluation import atlas as atlases
from resdm_suite.evaluation.agreement import agreement_table
from resdm_suite.evaluation.atlas import AtlasError, centiloid, centiloid_regions, load_atlas
from resdm_suite.evaluation.fidelity import quantities
from resdm_suite.evaluation.suvr import regional_means, regional_suvr
from resdm_suite.paths import synthetic_path
from resdm_suite.profiles import CentiloidConfig, FidelityConfig, GridConfig, PreprocessConfig
from resdm_suite.reporting.fidelity import shown_quantities, shown_range

GRID = Grid((24, 24, 24), 8.0)


def halves(path, value=(1, 2)):
    """A label image of 4 mm in MNI152: left half, right half, and one voxel of label 7."""
    fine = Grid((48, 48, 48), 4.0)
    data = np.where(fine.mm()[0] < 0, *value).astype(np.int16)
    data[0, 0, 0] = 7
    nib.save(fine.image(data), path)
    return path


def test_a_label_image_gives_its_regions_by_name_and_says_what_is_too_small(tmp_path):
    labels = tmp_path / "labels.tsv"
    labels.write_text("index\tname\n1\tleft\n2\tright\n7\tspeck\n9\tabsent\n")
    atlas = load_atlas(str(halves(tmp_path / "halves.nii.gz")), GRID, labels)
    assert list(atlas.masks) == ["left", "right"]
    assert atlas.left_out == ("speck", "absent")
    assert atlas.means(GRID.mm()[0])["left"] < 0 < atlas.means(GRID.mm()[0])["right"]
    assert not (atlas.masks["left"] & atlas.masks["right"]).any()
    numbered = load_atlas(str(tmp_path / "halves.nii.gz"), GRID)
    assert list(numbered.masks) == ["1", "2"]


def test_an_atlas_that_cannot_be_used_says_why(tmp_path):
    with pytest.raises(AtlasError, match="GAAIN"):
        centiloid_regions(tmp_path / "ctx.nii", tmp_path / "wc.nii", GRID)
    nib.save(GRID.image(np.full(GRID.shape, 0.5, dtype=np.float32)), tmp_path / "gm.nii.gz")
    far = nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 900)
    nib.save(far, tmp_path / "far.nii.gz")
    absent = "no such label image; expected a path, or one of aal, harvard_oxford"
    for name, message in {"none": absent, "gm": "whole numbers", "far": "MNI152 space"}.items():
        with pytest.raises(AtlasError, match=message):
            load_atlas(str(tmp_path / f"{name}.nii.gz"), GRID)
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "gm.nii.gz").read_bytes()[:200])
    for damaged in (lambda path: load_atlas(str(path), GRID), lambda path: centiloid_regions(path, path, GRID)):
        with pytest.raises(ValueError, match=r"cut\.nii\.gz: cannot be read as NIfTI"):
            damaged(tmp_path / "cut.nii.gz")
    wrong, tables = tmp_path / "wrong.tsv", {"id\tregion\n1\tleft\n": "columns index and name"}
    for rows, row in (("1\thalf\n2\thalf", 3), ("1\tleft\n1\tright", 3), ("x\tleft", 2), ("1\t", 2)):
        tables[f"index\tname\n{rows}\n"] = f"wrong.tsv, row {row}: .* each of them once"
    for table, message in tables.items():
        wrong.write_text(table)
        with pytest.raises(AtlasError, match=message):
            load_atlas(str(halves(tmp_path / "halves.nii.gz")), GRID, wrong)


def test_a_failed_download_says_how_to_get_the_atlas(monkeypatch):
    def offline(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(atlases.datasets, "fetch_atlas_aal", offline)
    with pytest.raises(AtlasError, match=r"no route to host.*NILEARN_DATA.*fidelity\.atlas"):
        load_atlas("aal", GRID)


def test_centiloid_anchors():
    assert centiloid(1.009, "11CPIB") == pytest.approx(0)
    assert centiloid(1.009 + 1.067, "11CPIB") == pytest.approx(100)
    assert centiloid(1.08, "18FFBB") == pytest.approx(10.772)  # Rowe et al. 2017
    assert centiloid(1.10, "18FAV45") == pytest.approx(10.64)  # Navitsky et al. 2018, standard volumes
    assert math.isnan(centiloid(1.2, "18FUNKNOWN"))
    assert centiloid(1.2, "18FAV45", {"18FAV45": (100.0, -100.0)}) == pytest.approx(20)


@pytest.fixture
def stored(tmp_path):
    """Five people with real PET, a method 10 % too high, and its profile."""
    config = make_config(tmp_path, preprocess=PreprocessConfig(grid=GridConfig(GRID.shape, GRID.voxel_mm)))
    rng, rows = np.random.default_rng(0), []
    for i in range(5):
        person = f"sub-{i}"
        row = {"person": person, "session": "ses-1", "split": "test", "age": 70.0 + i, "sex": "FM"[i % 2]}
        for tracer, label in (("amyloid", "18FAV45"), ("tau", "18FAV1451")):
            volume = np.clip(rng.normal(0.3 + 0.05 * i, 0.02, GRID.shape), 0, 0.9)
            real = save(config.volumes / person / f"{tracer}.nii.gz", volume, GRID.affine, (0.0, 3.0))
            save(synthetic_path(config.predictions("ResDM"), person, "ses-1", label), 1.1 * volume, GRID.affine)
            path = str(real.relative_to(config.volumes))
            row |= {f"present_{tracer}": True, f"{tracer}_tracer": label, tracer: path}
        rows.append(row)
    write_csv(config.volumes / "index.csv", pd.DataFrame(rows))
    return config


def test_every_set_of_regions_measures_both_pets(stored, tmp_path):
    halves(tmp_path / "halves.nii.gz")
    halves(tmp_path / "ctx.nii.gz", (1, 0))
    halves(tmp_path / "wc.nii.gz", (0, 1))
    scale = CentiloidConfig("ctx.nii.gz", "wc.nii.gz", {"18FAV45": (100.0, 0.0)})
    config = dataclasses.replace(stored, fidelity=FidelityConfig("halves.nii.gz", centiloid=scale))
    values = quantities(config, ["ResDM"])
    suvr = values[values["unit"] == "SUVR"]
    np.testing.assert_allclose(suvr["synthetic"], 1.1 * suvr["real"], rtol=1e-5)
    first = values.query("person == 'sub-0' and tracer == 'amyloid'").set_index(["regions", "region"])["real"]
    volume = 3 * nib.load(config.volumes / "sub-0" / "amyloid.nii.gz").get_fdata()
    left = GRID.mm()[0] < 0
    assert first["halves.nii.gz", "1"] == pytest.approx(volume[left].mean(), rel=1e-3)
    ratio = first["Centiloid VOIs", "Centiloid"]
    assert ratio == pytest.approx(100 * volume[left].mean() / volume[~left].mean(), rel=1e-3)
    assert values.query("unit == 'CL'")["region"].unique().tolist() == ["Centiloid"]
    assert ("built-in", "cerebellum") not in first.index
    assert not values.query("tracer == 'tau'")["unit"].eq("CL").any()
    assert shown_quantities(values)[-1] == ("amyloid", "Centiloid", "CL")
    uncalibrated = dataclasses.replace(scale, equations={"18FFBB": (100.0, 0.0)})  # another tracer's
    config = dataclasses.replace(stored, fidelity=FidelityConfig(centiloid=uncalibrated))
    values = quantities(config, ["ResDM"])
    row = values.query("unit == 'CL'").iloc[0]
    assert (row["regions"], row["region"]) == ("Centiloid VOIs", "uncalibrated Centiloid estimate")
    assert row["real"] == pytest.approx(175.4 * ratio / 100 - 182.3, rel=1e-6)


def test_real_regions_are_those_before_clipping(stored):
    """A PET whose sidecar has regional SUVR beyond the range; the synthetic one is measured as it is."""
    path = stored.volumes / "sub-0" / "tau.json"
    sidecar = json.loads(path.read_text())
    means = regional_means(3 * nib.load(path.with_suffix(".nii.gz")).get_fdata(), GRID, "tau")
    path.write_text(json.dumps(sidecar | {"regional_suvr": means | {"medial_temporal": 3.7, "summary": 3.2}}))
    found = quantities(stored, ["ResDM"]).query("person == 'sub-0' and tracer == 'tau'").set_index("region")
    regional, _ = regional_suvr(stored, "ResDM")
    other = regional.query("person == 'sub-0' and tracer == 'tau'").set_index("region")
    for rows in (found, other):
        assert rows.loc[["summary", "medial_temporal"], "real"].tolist() == [3.2, 3.7]
        assert rows.loc["pons", "real"] == pytest.approx(means["pons"])
        assert rows.loc["summary", "synthetic"] == pytest.approx(1.1 * means["summary"], rel=1e-5)


def fidelity_cells(config, **given):
    values = quantities(config, ["ResDM"])
    frame = agreement_table(values, ["method", "tracer", "regions", "region", "unit"])
    values["method"] = frame["method"] = "linear_path"
    given = {"values": values, "frame": frame, "methods": ["linear_path"], "record": {}} | given
    return run_cells("13", config, "13-02", "13-10", "13-06", **given)


def test_table_and_figure_state_what_the_scale_is_worth(stored):
    cells = fidelity_cells(stored)
    values, text = cells["values"], cells["table"].markdown()
    summary = values.query("tracer == 'amyloid' and region == 'summary'")["real"].to_numpy()
    row = cells["frame"].set_index(["tracer", "region"]).loc[("amyloid", "summary")]
    assert (row["bias"], row["slope"]) == pytest.approx((0.1 * summary.mean(), 1.1), rel=1e-3)
    assert row["icc_agreement"] < row["icc_consistency"] < 1
    assert "Aβ-PET, uncalibrated Centiloid estimate" in text
    assert "registration here is affine and was not calibrated, so these numbers are no Centiloids" in text
    np.testing.assert_allclose(values.query("unit == 'CL'")["real"], 175.4 * summary - 182.3)
    assert "not a reproduction of the paper" in text
    check_latex(cells["table"].latex())
    points = [line for line in cells["figure"].axes[0].lines if line.get_marker() == "o"]
    assert len(points[0].get_xdata()) == 5
    assert [text.get_text() for text in cells["figure"].axes[2].get_yticklabels()] == ["linear path"]


def test_single_people_are_not_drawn_where_they_may_not_be(stored):
    figure = fidelity_cells(dataclasses.replace(stored, privacy="aggregate"))["figure"]
    for axes in figure.axes[:2]:
        assert not [line for line in axes.lines if line.get_marker() == "o"]
        (cells,) = axes.collections[-1:]
        assert (np.asarray(cells.get_array()) >= 5).all()  # five people or more, or no cell at all
    one = np.array([1.0, 1.1, 1.2, 9.0])
    assert shown_range(one, individual=True)[1] > 9
    assert shown_range(one, individual=False)[1] != pytest.approx(shown_range(one, individual=True)[1])
