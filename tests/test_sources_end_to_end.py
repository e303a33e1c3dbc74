"""From every source to Table 2 by the commands a user types: mock downloads, an 8 mm grid, two steps of training."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from mock_adni import write_caps, write_clinica_bids, write_loni
from mock_sources import write_bids, write_csv_cohort, write_dlbs, write_released
from notebook_cells import PICTURES, run_cells

from resdm_suite.apps.cli import main
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.preprocessing.volumes import cohort_flow
from resdm_suite.profiles import load_config

SOURCES = {
    "adni-bids": ("adni", "adni", partial(write_clinica_bids, corrupt=True)),
    "adni-caps": ("adni", "adni", partial(write_caps, corrupt=True)),
    "adni-loni": ("adni", "adni", partial(write_loni, corrupt=True)),
    "openneuro": ("openneuro", "dlbs", write_dlbs),
    "bids": ("bids", "other", write_bids),
    "csv": ("csv", "other", write_csv_cohort),
    "released": ("released", "other", write_released),
}


def write_profile(folder, source, kind):
    """The smoke profile's grid and ResDM, two steps of it, on another cohort."""
    smoke = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    cohort = {"kind": kind, "source": source, "split": {"test": 0.25, "validation": 0.15}, "skip_unreadable": True}
    cohort["match"] = {"window_days": 366 if source == "openneuro" else 365, "same_visit": source == "openneuro"}
    training = smoke["training"] | {"epochs": 1, "batch_size": 8, "shift_voxels": 0}
    profile = {"profile": "mock", "cohort": cohort, "preprocess": smoke["preprocess"], "training": training}
    profile["methods"] = {"ResDM": smoke["methods"]["ResDM"]}
    path = folder / "mock.yaml"
    path.write_text(yaml.safe_dump(profile))
    return path


@pytest.mark.parametrize("name", SOURCES)
def test_from_a_download_to_table2(name, tmp_path, capsys):
    source, kind, write = SOURCES[name]
    mock = write(tmp_path / "download")
    profile = write_profile(tmp_path, source, kind)
    config, path = load_config(profile), str(profile)

    assert main(["manifest", source, path, "--root", str(mock.root)]) == 0
    output = capsys.readouterr().out
    for step in ("found", "has T1", "has amyloid", "has tau", "in window"):
        assert step in output
    assert main(["preprocess", path, "--quiet"]) == 0
    index = read_index(config, None)
    left = pd.read_csv(config.volumes / "excluded.csv")
    assert len(left) == 1  # the cut file, and nobody else
    assert mock.corrupt.name in left["reason"][0]
    manifest = pd.read_csv(config.manifest)
    assert len(index) == len(manifest) - len(left)
    flow = cohort_flow(config).set_index("step")["sessions"]
    assert flow["found"] >= flow["has T1"] >= flow["in window"] >= flow["kept"] > flow["scans usable"] == len(index)

    assert main(["train", path, "--quiet"]) == 0
    assert main(["predict", path, "--quiet"]) == 0
    table = run_cells("04", config, without=PICTURES)["table"]
    tested = index[index["split"] == "test"]
    counts = {t: tested.loc[tested[f"present_{t}"] == 1, "person"].nunique() for t in ("amyloid", "tau")}
    for (method, tracer), part in table.frame.groupby(["method", "tracer"]):
        assert method in ("ResDM", "template")
        assert (part["n"] == counts[tracer]).all()
        assert np.isfinite(part["mean"]).all()
    assert set(table.frame["tracer"]) == {t for t, n in counts.items() if n}
    assert json.loads((config.work / "split.json").read_text())["people"]["test"] >= tested["person"].nunique()
    first = run_cells("00", config)["table"]
    rows = first.frame.set_index(["characteristic", "diagnosis", "statistic"])["value"]
    assert rows["people", "all", "count"] == index["person"].nunique() >= 6  # of those found, with the scans they need
    assert "sub-" not in table.markdown() + first.markdown()
