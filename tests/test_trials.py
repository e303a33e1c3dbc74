"""The page of trials: means over seeds and folds, what is refused, and that it is the page of the tracked file."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import trials

LINES = """trial,method,seed,changes,fold,psnr_amyloid,psnr_tau,r_amyloid,r_tau,auc_amyloid,auc_tau,seconds,device
a,ResDM,0,,0,26.0,27.0,0.5,0.4,,,70,CPU
a,ResDM,1,,0,27.0,27.5,0.7,0.6,,,80,CPU
b,ResDM,0,"dropout: 0.2, ema: 0.9",validation,26.9,26.0,0.1,0.2,,,60,CPU
c,SC-GAN,0,,0,25.0,26.0,,,,,50,GPU
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "trials.csv"
    path.write_text(LINES, encoding="utf-8")
    return path


def test_means_are_over_seeds_and_folds(path):
    table = trials.summary(trials.read_trials(path)).set_index("trial")
    columns = ["psnr_amyloid", "seconds", "trainings", "seeds", "folds", "psnr_amyloid_std"]
    assert table.loc["a", columns].tolist() == [26.5, 75, 2, "0, 1", "0", pytest.approx(math.sqrt(0.5))]
    assert table.loc[["c", "b"], ["r_tau", "psnr_tau_std"]].isna().to_numpy().diagonal().all()


def test_the_page(path):
    page = trials.main(path).read_text(encoding="utf-8")
    assert page.count("\n### ") == 2
    assert "AUC" not in page.split("\n- ")[0]  # nobody measured it
    row = "| a | none | 0, 1 | 0 | 26.50 ± 0.71 | **27.25 ± 0.35** | **0.60 ± 0.14** | **0.50 ± 0.14** | 75 ± 7 | CPU |"
    assert row in page
    assert "| b | `dropout: 0.2, ema: 0.9` | 0 | validation | **26.90** | 26.00 | 0.10 | 0.20 | 60 | CPU |" in page
    assert "| c | none | 0 | 0 | 25.00 | 26.00 | – | – | 50 | GPU |" in page
    assert trials.main(path).read_text(encoding="utf-8") == page


@pytest.mark.parametrize(("old", "new", "message"), [
    ("b,ResDM,0", "a,ResDM,2", r"trials\.csv, line 4: trial a has another method or other changes in a line above"),
    ("a,ResDM,1", "a,ResDM,0", r"line 3: trial a, seed 0, fold 0 has two rows; keep one"),
    ("26.9,26.0", "26.9,high", r"line 4: psnr_tau 'high' is no number; correct it"),
    (",50,GPU", ",50,", r"line 5: trial, method, seed, fold and device must have a value"),
    ("trial,method", "date,method", r"columns date, method.*expected trial, method"),
])  # fmt: skip
def test_invalid_files_are_refused(path, old, new, message):
    path.write_text(LINES.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        trials.read_trials(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"trials\.csv: no trials; write them there, with the columns trial"):
        trials.main(tmp_path / "trials.csv")


@pytest.mark.skipif(not trials.PATH.is_file(), reason="no trials are tracked")
def test_the_tracked_page_is_of_the_tracked_trials():
    page = trials.PATH.with_suffix(".md").read_text(encoding="utf-8")
    assert page == trials.render(trials.read_trials()), "run python benchmarks/trials.py"


def test_the_table_of_the_gpu_run_holds_its_means():
    page = trials.PATH.with_name("phantom128_h100.md").read_text(encoding="utf-8")
    means = pd.read_csv(trials.PATH.with_name("phantom128_h100.csv")).set_index(["method", "tracer"])
    names = {"age and sex alone": "demographics", "mean PET (template)": "template"}
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in page.splitlines() if " / " in line]
    rows = {names.get(row[0], row[0]): row for row in rows if len(row) == 7}
    assert set(rows) == {method for method, _ in means.index}
    for name, row in rows.items():
        for text, column, digits in ((row[4], "psnr_mean", 2), (row[5], "ssim_mean", 3)):
            assert text == " / ".join(f"{means.loc[(name, t), column]:.{digits}f}" for t in ("amyloid", "tau")), name
