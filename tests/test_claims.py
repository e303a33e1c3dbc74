"""The claims ledger: no printed number without a row, every row resolved, verdicts by the stated rules."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, tiny_prior
from stored_cohort import make_config

from resdm.baselines.ddpm import DDPM, DDPMConfig
from resdm.baselines.per_tracer import PerTracer
from resdm.baselines.pix2pix import Pix2Pix
from resdm.baselines.regression import RegressionConfig
from resdm.baselines.resvit import ResViT
from resdm.baselines.scgan import SCGAN
from resdm.baselines.transunet import TransUNet
from resdm.io import write_csv
from resdm.layers import clip
from resdm.prior import PriorModule
from resdm.residual_diffusion import ResidualDiffusionConfig
from resdm_suite.profiles import CohortConfig
from resdm_suite.reporting.claims import (
    CODE,
    CONTRADICTED,
    FAILED,
    HELD,
    MISSING,
    OTHER,
    SAME,
    STATUSES,
    UNTESTABLE,
    claim_inputs,
    claims,
    having,
    headline,
)
from resdm_suite.reporting.printed import contradictions, printed_claims, read_claims
from resdm_suite.reporting.provenance import provenance
from resdm_suite.reporting.stored import Comparison, Estimate, compare_estimates, mover, read_output
from resdm_suite.reporting.tables import PAPER_METHODS, read_paper, save_table

PAPER = ROOT / "data_manifests" / "paper"

TEXT_NUMBERS = {
    "3.1": ["0", "1"],  # η_1 → 0, η_T → 1
    "3.2": ["77", "32", "1"],  # tokens; ViT-B/32; "the final transformer layer"
    "4.1": ["1274", "1020", "254", "128", "1.5"],
    # "five … approaches", "two … models", "a single model", "six models"; gains
    "4.2": ["5", "2", "1", "6", "0.43", "1.18", "1.44", "0.53", "0.87", "1.25"],
    "5.2": ["81.90", "83.02", "5"],  # "five-fold"
}
"""Every number of the paper's text and captions that says something of its data, settings or results, by section."""

TRACERS = ("amyloid", "tau")
SENTENCES = {
    "superior performance both quantitatively and qualitatively": ["superior", "superior_by_eye"],
    "maximally reconstruct its modality-specific details": ["residual_details"],
    "enhancing their diagnostic value": ["prior_value"],
    "promoting more accurate synthesis": ["loss_accuracy"],
    "closely match those among real PET images": ["loss_differences"],
    "low-cost and time-efficient": ["low_cost"],
    "significantly reduces model parameters": ["one_model_smaller"],
    "diffusion models struggle to differentiate": ["traditional_diffusion"],
    "our proposed method outperforms others": [f"best_{tracer}" for tracer in TRACERS],
    "substantial improvements across all metrics": [f"over_ddpm_{tracer}" for tracer in TRACERS],
    "overly smooth images": ["smooth"],
    "the clearest critical details": ["clearest"],
    "the smallest difference from the ground truth": ["smallest_difference"],
    "shows improvements upon the addition of either": [f"{part}_{t}" for part in ("loss", "prior") for t in TRACERS],
    "the best synthetic results when both are applied": [f"both_{tracer}" for tracer in TRACERS],
    "significant improvements in the positive and negative diagnoses": ["prior_diagnosis", "prior_diagnosis_full"],
    "matches best with the ground truth": ["figure3"],
    "the strongest gender classification capability": [
        f"figure4_{tracer}_{metric}" for tracer in TRACERS for metric in ("acc", "f1", "auc")
    ],
    "images with greater diagnostic value": ["gender_value"],
    "is significantly higher compared to the non-age-guided": [f"figure5_{tracer}" for tracer in TRACERS],
    "close to those using real images": [f"close_{tracer}" for tracer in TRACERS],
    "achieves the best diagnostic results": [f"diagnosis_{tracer}" for tracer in TRACERS],
    "exceptionally high diagnostic value": ["potential"],
}
"""Every comparing sentence of the paper, by a few of its words → its rows."""


# ── every number has a row ────────────────────────────────────────────────────────────────────────


def printed_numbers() -> dict[str, Counter]:
    """What the paper prints, by section: the text's list above and the cells of the tables' files."""
    numbers = {section: Counter(values) for section, values in TEXT_NUMBERS.items()}
    for table in (1, 2, 3, 4):
        with open(PAPER / f"table{table}.csv", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        columns = ["value"] if table == 1 else ["mean", "std"]
        numbers[f"Table {table}"] = Counter(row[column] for row in rows for column in columns)
    return numbers


def without_a_row(rows: pd.DataFrame) -> dict[str, Counter]:
    """Printed numbers that no row of the ledger has."""
    counted = rows[rows["kind"].isin(["value", "characteristic", "gain", "count", "setting"])]
    missing = {}
    for section, numbers in printed_numbers().items():
        texts = counted.loc[counted["section"] == section, "printed"]
        lacking = numbers - Counter(found for text in texts for found in re.findall(r"\d+(?:\.\d+)?", text))
        if lacking:
            missing[section] = lacking
    return missing


def test_every_printed_number_has_a_row():
    assert sum(sum(numbers.values()) for numbers in printed_numbers().values()) == 39 + 2 * (36 + 32 + 42) + 23
    assert without_a_row(printed_claims()) == {}


def test_a_number_without_a_row_is_found():
    rows = printed_claims()
    numbered = rows[rows["kind"].isin(["value", "characteristic", "gain", "count", "setting"])]
    assert len(numbered) == 21 + 36 + 32 + 42 + 23
    for index, row in numbered.iterrows():
        missing = without_a_row(rows.drop(index=index))
        assert list(missing) == [row["section"]], row["id"]


def test_every_comparison_has_a_row():
    rows = read_claims()
    compared = rows.loc[rows["kind"].isin(["best", "chain", "close", "words"]), "id"]
    assert sorted(compared) == sorted(name for names in SENTENCES.values() for name in names)
    assert rows.loc[rows["kind"] == "words", "note"].ne("").all()  # not measured, for a reason that is said
    assert rows.loc[rows["kind"].isin(["best", "chain", "close"]), "tracers"].ne("").all()


@pytest.fixture(scope="module")
def paper() -> str:
    """The paper's text, which lies beside the repository in development, and does not ship with it."""
    path = ROOT.parent / "shared" / "paper.md"
    if not path.is_file():
        pytest.skip("the paper's text does not ship with the project")
    return path.read_text(encoding="utf-8")


def test_tables_are_the_papers_cell_by_cell(paper):
    plain = re.sub(r"</?b>", "", paper).replace("<math>\\pm</math>", "±").replace("$\\pm$", "±")
    lines = [line.split("\t") for line in plain.splitlines() if "\t" in line and re.search(r"\d\d", line)]
    found = {1: lines[:7], 2: lines[7:13], 3: lines[13:17], 4: lines[17:]}
    assert [len(rows) for rows in found.values()] == [7, 6, 4, 7]
    for table, rows in found.items():
        cells = [cell for row in rows for cell in row[1:]]
        printed = [number for cell in cells for number in re.findall(r"\d+(?:\.\d+)?", cell)]
        columns = ["value"] if table == 1 else ["mean", "std"]
        with open(PAPER / f"table{table}.csv", encoding="utf-8") as stream:
            ours = [row[column] for row in csv.DictReader(stream) for column in columns]
        assert ours == printed


def test_the_list_of_text_numbers_is_the_papers(paper):
    body = paper[paper.index("## 1 Introduction") : paper.index("## Acknowledgments")]
    body = re.sub(r"\$\$.*?\$\$", "", body, flags=re.DOTALL)  # equations
    body = "\n".join(line for line in body.splitlines() if "\t" not in line and not line.startswith("#"))
    body = re.sub(r"\\times 128|\[[^\]]*\b\d{4}[^\]]*\]|\b(Figure|Table) \d|\b\d\)|\(\d(st|nd|rd|th) row\)", "", body)
    body = re.sub(r"T1-weighted|F1 Score|[_^]\{?-?[\dit,=→]+(?:=1)?\}?|\{\d\}|mm\}\^3|i = \d|A \$|1\.5", "", body)
    numbers = Counter(re.findall(r"(?<![\d.])\d+(?:\.\d+)?", body))
    listed = Counter(number for values in TEXT_NUMBERS.values() for number in values)
    assert set(numbers) - set(listed) == set()
    assert {n for n in listed if "." in n or len(n) > 1} - set(numbers) == {"1.5"}  # taken out above, with its unit


def test_the_sentences_are_the_papers(paper):
    text = " ".join(paper.split())
    assert [words for words in SENTENCES if words not in text] == []


# ── what the paper contradicts itself in, computed again ──────────────────────────────────────────


def cells(number: int) -> dict[tuple[str, ...], float]:
    with open(PAPER / f"table{number}.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    keys = {1: ("characteristic", "diagnosis", "statistic"), 2: ("method", "tracer", "metric")}
    keys |= {3: ("variant", "tracer", "metric"), 4: ("method", "status", "metric")}
    return {tuple(row[k] for k in keys[number]): float(row["value" if number == 1 else "mean"]) for row in rows}


def test_contradictions_are_those_of_the_printed_numbers():
    found = contradictions(printed_claims())
    table = cells(2)
    expected = set()
    for tracer, printed in {"amyloid": (0.43, 1.18, 1.44), "tau": (0.53, 0.87, 1.25)}.items():
        for metric, gain in zip(("mae", "psnr", "ssim"), printed, strict=True):
            over = {
                m: round(abs(table["ResDM", tracer, metric] - table[m, tracer, metric]), 2) for m in PAPER_METHODS[:-1]
            }
            name = f"gain_{tracer}_{metric}"
            if (tracer, metric) == ("tau", "mae"):  # 2.42 − 1.90 of rounded means may be 0.51 to 0.53
                assert (gain, over["DDPM"]) == (0.53, 0.52)
                continue
            expected.add(name)
            assert f"where Table 2 has {over['DDPM']:.2f}" in found[name]
            assert over["ResViT"] == gain
            assert found[name].endswith(f"{gain:.2f} is the gain over ResViT")
    first = cells(1)
    columns = sum(first["sets", d, "count"] for d in ("AD", "MCI", "CN"))
    people = sum(first["sex", d, s] for d in ("AD", "MCI", "CN") for s in ("female", "male"))
    assert columns == people == 1474
    assert columns != 1020 + 254 == 1274
    assert "1020 + 254 = 1274" in found["sets"]
    assert "210 + 656 + 608 = 1474, its sex rows to 1474" in found["sets"]
    assert (cells(3)["ResDM", "tau", "acc"], cells(4)["ResDM", "tau", "acc"]) == (83.06, 83.02)
    twice = {"table3/ResDM/tau/acc", "table4/ResDM/tau/acc", "accuracy_tau"}
    assert all("83.06 in Table 3" in found[name] and "83.02 in Table 4" in found[name] for name in twice)
    assert set(found) == expected | twice | {"sets"}


def altered(root: Path, name: str, *changes: tuple[str, str]) -> Path:
    """A copy of the printed numbers in which some lines are others."""
    folder = root / "data_manifests" / "paper"
    if not folder.is_dir():
        shutil.copytree(PAPER, folder)
    text = (folder / name).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / name).write_text(text, encoding="utf-8")
    return root


def test_a_paper_that_agrees_with_itself_has_no_contradiction(tmp_path):
    altered(tmp_path, "table3.csv", ("83.06", "83.02"))
    altered(
        tmp_path, "claims.csv", (",1274,", ",1474,"), (",1020,", ",1220,"), (",0.43,", ",0.68,"), (",1.18,", ",1.53,")
    )
    altered(
        tmp_path, "claims.csv", (",1.44,", ",4.30,"), (",0.53,", ",0.52,"), (",0.87,", ",1.19,"), (",1.25,", ",1.60,")
    )
    assert contradictions(printed_claims(tmp_path), tmp_path) == {}


@pytest.mark.parametrize(("gain", "contradicted"), [("0.51", False), ("0.54", True), ("0.50", True)])
def test_a_gain_may_differ_from_its_table_by_rounding(tmp_path, gain, contradicted):
    altered(tmp_path, "claims.csv", (",0.53,", f",{gain},"))
    found = contradictions(printed_claims(tmp_path), tmp_path)
    assert ("gain_tau_mae" in found) is contradicted
    if contradicted:
        assert "where Table 2 has 0.52; nor is it" in found["gain_tau_mae"]
        assert "0.47 over ResViT" in found["gain_tau_mae"]


def test_a_sentence_that_its_table_does_not_bear_out_is_a_contradiction(tmp_path):
    altered(tmp_path, "table2.csv", ("ResViT,ResViT,amyloid,psnr,dB,25.20", "ResViT,ResViT,amyloid,psnr,dB,26.50"))
    found = contradictions(printed_claims(tmp_path), tmp_path)
    assert {"best_amyloid", "superior"} <= set(found)
    assert "best_tau" not in found
    assert "Aβ PSNR of ResDM is not better than that of ResViT" in found["best_amyloid"]


# ── made-up outputs ───────────────────────────────────────────────────────────────────────────────

BETTER = {"mae": -1, "psnr": 1, "ssim": 1, "acc": 1}


def quality_rows(gains, metrics=("mae", "psnr", "ssim"), regions=("whole", "brain"), p=0.001, against=None):
    """Rows of Table 2 (or 3: ``against``) in which ResDM is better than each method by so much, everywhere."""
    rows = []
    for method, gain in gains.items():
        for tracer in ("amyloid", "tau"):
            for region in regions:
                for metric in metrics:
                    row = {"method": method, "tracer": tracer, "region": region, "metric": metric, "unit": "%"}
                    mean = 50 - BETTER[metric] * gain
                    row |= {"mean": mean, "std": 2.0, "n": 20, "ci_low": mean - 1, "ci_high": mean + 1}
                    for prefix, other in (against or {"": "ResDM"}).items():
                        keys = [f"{prefix}{key}" for key in ("difference", "difference_low", "difference_high", "p")]
                        row |= dict.fromkeys(keys, math.nan)
                        if method != other:
                            difference = -BETTER[metric] * (gain - gains[other])
                            row |= zip(keys, (difference, difference - 0.2, difference + 0.2, p), strict=True)
                    rows.append(row)
    return rows


GAINS = {"Pix2Pix": 2.0, "SC-GAN": 1.5, "DDPM": 1.2, "TransUNet": 1.0, "ResViT": 0.8, "ResDM": 0.0, "regression": -1.0}
VARIANTS = {"Base": 1.0, "+L_high": 0.5, "+prior": 0.4, "ResDM": 0.0}


BOTH = {"base_": "Base", "full_": "ResDM"}


def table3_rows(gains: dict[str, float] = VARIANTS, p: float = 0.001) -> list[dict]:
    return quality_rows(gains, p=p, against=BOTH) + quality_rows(gains, ("acc",), ("status",), p=p, against=BOTH)


def table4_rows(values: dict[str, float], half: float = 1.0) -> list[dict]:
    return [
        {"source": source, "target": "label", "tracer": tracer, "metric": metric, "mean": value, "std": 2.0, "n": 20}
        | {"paper": 1.0, "ci_low": value - half, "ci_high": value + half}
        for source, value in values.items()
        for tracer in ("amyloid", "tau")
        for metric in ("auc", "acc", "f1")
    ]


SOURCES = {
    "real": 95.0,
    "ResDM": 90.0,
    "DDPM": 80.0,
    "Pix2Pix": 79.0,
    "TransUNet": 78.0,
    "ResViT": 77.0,
    "SC-GAN": 70.0,
}


PROMPTS = {"factual": "right", "no_sex": "none", "wrong_sex": "wrong"}


def figure_rows(values: dict[str, float], metrics: tuple[str, ...], half: float) -> list[dict]:
    return [
        {"source": "real" if condition == "real" else "ResDM", "tracer": tracer}
        | ({"condition": condition} if metric == "r" else {"prompt": PROMPTS.get(condition, condition)})
        | ({"metric": metric, "value": value} if metric != "r" else {"r": value})
        | {"low": value - half, "high": value + half, "n": 20}
        for condition, value in values.items()
        for tracer in ("amyloid", "tau")
        for metric in metrics
    ]


def table1_rows() -> list[dict]:
    printed = read_paper(1)
    return [row | {"n": 100} for row in printed.drop(columns="printed_as").to_dict("records")]


def write_outputs(config, **changes: list[dict]) -> None:
    outputs = {
        "table1": table1_rows(),
        "table2": quality_rows(GAINS),
        "table3": table3_rows(),
        "table4": table4_rows(SOURCES) + [row | {"target": "planted", "mean": 1.0} for row in table4_rows(SOURCES)],
        "figure4": figure_rows({"real": 90, "factual": 85, "no_sex": 70, "wrong_sex": 30}, ("acc", "f1", "auc"), 5),
        "figure5": figure_rows({"real": 0.8, "factual": 0.7, "no_age": 0.2}, ("r",), 0.1),
    } | changes
    for name, rows in outputs.items():
        if rows is not None:
            write_csv(config.figures / f"{name}.csv", pd.DataFrame(rows))


def write_work(config) -> None:
    """An index with 3 sets for training, 1 for testing and a session without tau; five folds."""
    rows = [
        {"person": f"sub-{i}", "session": "ses-1", "split": split, "present_amyloid": 1, "present_tau": tau}
        | {f"{t}{end}": "x" for t in ("amyloid", "tau") for end in ("_tracer", "")}
        for i, (split, tau) in enumerate([("train", 1), ("train", 1), ("validation", 1), ("test", 1), ("test", 0)])
    ]
    write_csv(config.volumes / "index.csv", pd.DataFrame(rows))
    folds = [{"fold": fold, "target": "label", "source": "real", "tracer": "tau"} for fold in range(5)]
    write_csv(config.work / "evaluation" / "status_folds.csv", pd.DataFrame(folds))


def ledger(config) -> pd.DataFrame:
    return claims(config).frame.set_index("id")


def adni(root: Path, intensity: str = "minmax"):
    config = dataclasses.replace(make_config(root), cohort=CohortConfig(kind="adni"))
    return dataclasses.replace(config, preprocess=dataclasses.replace(config.preprocess, intensity=intensity))


@pytest.mark.parametrize("kind", ["absent", "present", "adni"])
def test_every_row_resolves_to_a_value_or_a_reason(tmp_path, kind):
    config = adni(tmp_path) if kind == "adni" else make_config(tmp_path)
    if kind != "absent":
        write_outputs(config)
        write_work(config)
    frame = claims(config).frame
    assert frame["id"].is_unique
    own = frame[frame["kind"] == "control"]
    assert own["id"].tolist() == ([] if kind == "absent" else ["control/table2/regression"])
    frame = frame.drop(index=own.index)
    assert len(frame) == len(printed_claims()) == 21 + 36 + 32 + 42 + len(read_claims())
    settings = frame["kind"] == "setting"
    assert set(frame.loc[~settings, "status"]) <= set(STATUSES)
    assert set(frame.loc[settings, "status"]) <= {SAME, OTHER, MISSING}
    assert frame["reason"].ne("").all()
    assert frame["where"].ne("").equals(frame["kind"].ne("words"))
    if kind == "absent":
        lacking = frame[frame["status"] == MISSING]
        assert (lacking["ours"] == "–").all()
        assert lacking["reason"].str.contains(r"\.csv is not there; notebooks/\d\d_\w+\.ipynb makes it").all()
        assert {HELD, FAILED} & set(frame.loc[frame["kind"].isin(["best", "chain", "close"]), "status"]) == set()
        assert claim_inputs(config) == []
    else:
        assert MISSING not in set(frame["status"])
        measured = frame[(frame["kind"] != "words") & ~settings]
        assert measured["ours"].ne("–").all()
        assert len(claim_inputs(config)) == 8


def test_our_values_are_those_of_the_files(tmp_path):
    config = make_config(tmp_path)
    write_outputs(config)
    write_work(config)
    frame = ledger(config)
    stored = pd.read_csv(config.figures / "table2.csv").set_index(["method", "tracer", "region", "metric"])
    for method in PAPER_METHODS:
        row = frame.loc[f"table2/{method}/tau/psnr"]
        assert row["ours_value"] == stored.loc[(method, "tau", "whole", "psnr"), "mean"] == 50 - GAINS[method]
        assert row["ours"] == f"{50 - GAINS[method]:.2f} ± 2.00"
        assert row["n"] == 20
    assert frame.loc["table3/intra_domain_loss/tau/acc", "ours_value"] == 49.5
    assert frame.loc["table4/real/amyloid/f1", "ours_value"] == 95.0
    assert frame.loc["accuracy_amyloid", ["printed_value", "ours_value"]].tolist() == [81.9, 90.0]
    assert frame.loc["table1/sex/MCI", "ours"] == "297/359"
    assert frame.loc["gain_amyloid_mae", "ours_value"] == pytest.approx(GAINS["DDPM"])
    assert frame.loc["figure4_tau_auc", "ours"] == "85.00 > 70.00 > 30.00"
    assert frame.loc["figure5_tau", "ours"] == "0.70 > 0.20"
    counts = frame.loc[["sets", "training_sets", "test_sets", "folds"], "ours"]
    assert counts.tolist() == ["4", "3", "1", "5"]


def test_on_another_cohort_absolute_numbers_are_not_tested_and_comparisons_are(tmp_path):
    config = make_config(tmp_path)
    write_outputs(config)
    write_work(config)
    frame = ledger(config)
    contradicted = set(contradictions(printed_claims()))
    absolute = frame[frame["kind"].isin(["value", "characteristic", "gain", "count"])]
    assert (absolute.drop(index=list(contradicted))["status"] == UNTESTABLE).all()
    assert (absolute.loc[list(contradicted), "status"] == CONTRADICTED).all()
    assert (absolute.loc[list(contradicted), "ours"] != "–").all()  # ours stands beside it all the same
    compared = frame[frame["kind"].isin(["best", "chain", "close"])]
    assert (compared["status"] == HELD).all(), compared.loc[compared["status"] != HELD, "reason"].to_dict()
    assert frame.loc["best_tau", ["printed", "ours", "n"]].tolist() == ["15 of 15", "15 of 15", 20]


def test_on_the_papers_cohort_the_printed_value_must_lie_near_ours(tmp_path):
    """Two samples: ours ± its interval, and the printed mean, 27.78 ± 3.21 of 254 test sets."""
    config = adni(tmp_path)
    reach = 1.96 * 3.21 / math.sqrt(254)
    outside = 27.78 + math.hypot(0.1, reach) + 0.01  # ours of ± 0.1; without the paper's own error 27.9 would fail
    for mean, status in ((27.9, HELD), (outside, FAILED)):
        at = {"method": "ResDM", "tracer": "tau", "metric": "psnr", "region": "whole"}
        rows = change(quality_rows(GAINS), at, mean=mean, ci_low=mean - 0.1, ci_high=mean + 0.1)
        write_outputs(config, table2=rows)
        row = ledger(config).loc["table2/ResDM/tau/psnr"]
        assert row["status"] == status
        ends = (mean - 27.78 - math.hypot(0.1, reach), mean - 27.78 + math.hypot(0.1, reach))
        assert row["reason"] == f"ours − printed: {mean - 27.78:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]".replace("-", "−")
    short = change(table1_rows(), {"statistic": "count", "diagnosis": "AD"}, value=209)
    near = change(table4_rows(SOURCES), {"source": "ResDM", "metric": "acc"}, mean=83.5, ci_low=83.2, ci_high=83.8)
    write_outputs(config, table1=short, table4=near)
    write_work(config)
    frame = ledger(config)
    # Aβ 81.90 ± 1.74 of five folds: 1.60 apart, and the reach of both is hypot(0.30, 1.96 · 0.78) = 1.55
    assert frame.loc["accuracy_amyloid", ["status", "reason"]].tolist() == [FAILED, "ours − printed: 1.60 [0.05, 3.15]"]
    assert frame.loc["table1/age/AD", "status"] == HELD
    assert frame.loc[["table1/sets/AD", "table1/sets/CN"], "status"].tolist() == [FAILED, HELD]
    assert frame.loc["training_sets", "status"] == FAILED
    assert frame.loc["gain_tau_mae", ["ours", "status"]].tolist() == ["+1.20 %", FAILED]  # 0.53 is printed
    assert frame.loc["grid", "status"] == OTHER  # the tiny grid is not the paper's


def test_image_quality_in_another_intensity_unit_is_not_tested(tmp_path):
    config = adni(tmp_path, intensity="fixed")
    write_outputs(config)
    frame = ledger(config)
    images = frame[frame.index.str.contains("^table[23]/.*/(?:mae|psnr|ssim)$") | (frame["kind"] == "gain")]
    assert len(images) == 36 + 24 + 6
    images = images[images["status"] != CONTRADICTED]
    assert (images["status"] == UNTESTABLE).all()
    assert images["reason"].str.startswith("another intensity unit").all()
    assert frame.loc["table4/DDPM/tau/auc", "status"] == FAILED  # 80 against 88.42: an AUC has no such unit
    assert frame.loc["best_tau", "status"] == HELD


# ── verdicts ──────────────────────────────────────────────────────────────────────────────────────


def statuses(tmp_path, *names: str, **changes: list[dict]) -> list[tuple[str, str]]:
    config = make_config(tmp_path)
    write_outputs(config, **changes)
    frame = ledger(config)
    return [tuple(frame.loc[name, ["status", "reason"]]) for name in names]


def change(rows: list[dict], at: dict, **values) -> list[dict]:
    """Rows with other values where they match."""
    return [row | values if all(row[k] == v for k, v in at.items()) else row for row in rows]


def test_a_direction_without_its_test_did_not_hold(tmp_path):
    at = {"method": "ResViT", "tracer": "tau", "metric": "ssim", "region": "brain"}
    rows = change(quality_rows(GAINS), at, p=0.051)
    tau, amyloid, ddpm = statuses(tmp_path, "best_tau", "best_amyloid", "over_ddpm_tau", table2=rows)
    assert tau[0] == FAILED
    assert tau[1].startswith(
        "direction holds, not supported: tau SSIM, ResDM against ResViT: +0.80 % [0.60, 1.00], p = 0.051"
    )
    assert tau[1].endswith("SSIM over the whole grid: 5 of 5 held")
    assert (amyloid[0], ddpm[0]) == (HELD, HELD)


def test_the_other_way_round_did_not_hold_however_small_its_p(tmp_path):
    rows = quality_rows(GAINS | {"DDPM": -0.7})
    best, over, mae = statuses(tmp_path, "best_tau", "over_ddpm_amyloid", "smallest_difference", table2=rows)
    assert best[0] == over[0] == mae[0] == FAILED
    assert over[1].count("the other way round") == 3
    assert "Aβ MAE, ResDM against DDPM: −0.70 % [−0.90, −0.50], p = 0.001" in over[1]


def test_a_method_that_was_not_run_leaves_the_sentence_open_unless_it_fails_already(tmp_path):
    few = {"DDPM": 1.0, "ResDM": 0.0}
    best, over = statuses(tmp_path, "best_tau", "over_ddpm_tau", table2=quality_rows(few))
    assert best[0] == UNTESTABLE
    assert "3 of 15 held; Pix2Pix, SC-GAN, TransUNet, ResViT not in figures/tiny/table2.csv" in best[1]
    assert over[0] == HELD
    (best,) = statuses(tmp_path, "best_tau", table2=quality_rows(few, p=0.4))
    assert best[0] == FAILED
    none, gain = statuses(tmp_path, "over_ddpm_tau", "table2/DDPM/tau/mae", table2=quality_rows({"ResDM": 0.0}))
    assert none == (UNTESTABLE, "DDPM is not in figures/tiny/table2.csv")
    assert gain == (UNTESTABLE, "DDPM is not in figures/tiny/table2.csv")


def test_variants_are_compared_by_their_own_paired_tests(tmp_path):
    """Their means' intervals (±1) would hide 0.5; the paired test does not."""
    (loss,) = statuses(tmp_path, "loss_tau")
    assert loss[0] == HELD
    assert "+L_high against Base: +0.50 % [0.30, 0.70], p = 0.001" in loss[1]
    rows = [
        row | ({"base_p": 0.2} if row["method"] == "+L_high" else {"full_p": 0.3} if row["method"] == "Base" else {})
        for row in table3_rows()
    ]
    loss, prior, both, figure = statuses(tmp_path, "loss_tau", "prior_tau", "both_tau", "figure3", table3=rows)
    assert [loss[0], prior[0], both[0], figure[0]] == [FAILED, HELD, FAILED, FAILED]
    assert loss[1].count("direction holds, not supported") == 3  # and one more
    assert "tau MAE, ResDM against Base: +1.00 % [0.80, 1.20], p = 0.300" in both[1]


def test_variants_without_a_status_leave_accuracy_open(tmp_path):
    rows = change(table3_rows(), {"metric": "acc"}, mean=math.nan, base_difference=math.nan, full_difference=math.nan)
    loss, value, cell = statuses(tmp_path, "loss_accuracy", "prior_diagnosis", "table3/prior/tau/acc", table3=rows)
    assert loss[0] == HELD
    assert value == (UNTESTABLE, "ACC of +prior, ACC of Base are not in figures/tiny/table3.csv")
    assert cell == (UNTESTABLE, "+prior, tau ACC is not in figures/tiny/table3.csv")


def test_orders_of_the_figures(tmp_path):
    same = figure_rows({"factual": 71, "no_sex": 70, "wrong_sex": 69}, ("acc", "f1", "auc"), 5)
    flat = figure_rows({"factual": 0.3, "no_age": 0.5}, ("r",), 0.4)
    sex, age = statuses(tmp_path, "figure4_tau_acc", "figure5_tau", figure4=same, figure5=flat)
    assert sex[0] == age[0] == FAILED
    assert sex[1].count("direction holds, not supported") == 2
    assert age[1].startswith("the other way round: tau r, own prompt against no age: −0.20 [")
    config = make_config(tmp_path)
    assert ledger(config).loc["figure4_tau_acc", "ours"] == "71.00 > 70.00 > 69.00"


def test_wide_intervals_of_two_sides_do_not_tell(tmp_path):
    wide = table4_rows(SOURCES | {"DDPM": 88.0}, half=6.0)
    (apart,) = statuses(tmp_path, "diagnosis_tau", table4=wide)
    assert apart[0] == FAILED
    assert "tau AUC, ResDM against DDPM: +2.00 % [−6.49, 10.49]" in apart[1]


def test_the_effect_of_a_prompt_on_the_same_people_goes_before_two_intervals(tmp_path):
    """Intervals of ±0.05 around 0.71, 0.70 and 0.69 do not tell; the stored differences do, one for one step only."""
    sex = figure_rows({"factual": 0.71, "no_sex": 0.70, "wrong_sex": 0.69}, ("acc", "auc", "f1"), 0.05)
    effects = [
        {
            "name": f"{metric}_{step}",
            "tracer": "tau",
            "unit": "fraction",
            "estimate": 0.01,
            "low": low,
            "high": 0.02,
            "n": 9,
        }
        for metric, low in (("acc", 0.001), ("auc", -0.001))
        for step in ("right_none", "none_wrong")
    ]
    age = [{"name": "r_with_without", "tracer": "amyloid", "estimate": 0.3, "low": -0.1, "high": 0.7, "n": 9}]
    found = statuses(
        tmp_path, "figure4_tau_acc", "figure4_tau_auc", "figure4_amyloid_acc", "figure5_amyloid", "figure5_tau",
        figure4=sex, figure4_effects=effects, figure5_effects=age,
    )  # fmt: skip
    assert [status for status, _ in found] == [HELD, FAILED, FAILED, FAILED, HELD]
    assert found[0][1] == "the weakest: tau ACC, own prompt against no sex: +0.01 [0.00, 0.02]"
    assert found[3][1].endswith("Aβ r, own prompt against no age: +0.30 [−0.10, 0.70]")


def test_close_means_a_gap_no_wider_than_the_papers(tmp_path):
    # printed gaps: 94.18 − 81.90 = 12.28 and 92.32 − 83.02 = 9.30
    amyloid, tau = statuses(tmp_path, "close_amyloid", "close_tau", table4=table4_rows(SOURCES | {"ResDM": 85.0}))
    assert amyloid == (HELD, "our gap [8.59, 11.41], printed 12.28")
    assert tau == (FAILED, "wider: our gap [8.59, 11.41], printed 9.30")


def test_no_interval_no_verdict(tmp_path):
    rows = change(figure_rows({"factual": 85, "no_sex": 70, "wrong_sex": 30}, ("acc", "f1", "auc"), 5), {}, low=np.nan)
    (found,) = statuses(tmp_path, "figure4_tau_acc", figure4=rows)
    assert found == (MISSING, "figures/tiny/figure4.csv holds no test and no interval for it")


def test_mover():
    assert mover((0.5, 0.4, 0.6), (0.3, 0.2, 0.4)) == pytest.approx((0.2, 0.2 - 0.02**0.5, 0.2 + 0.02**0.5))
    # lopsided: the lower end takes a's lower and b's upper reach, the upper end the others
    assert mover((0.9, 0.6, 0.95), (0.5, 0.3, 0.9)) == pytest.approx((0.4, 0.4 - 0.5, 0.4 + math.hypot(0.05, 0.2)))


def test_gain_is_towards_better_for_errors_and_scores():
    values = {
        ("ResDM", "tau", "mae"): Estimate(2, 1, 3, 9),
        ("ResDM", "tau", "psnr"): Estimate(2, 1, 3, 9),
        ("DDPM", "tau", "mae"): Estimate(3, 2, 4, 8),
        ("DDPM", "tau", "psnr"): Estimate(1, 0, 2, 8),
    }
    error, score = ("ResDM", "DDPM", "tau", "mae"), ("ResDM", "DDPM", "tau", "psnr")
    stored = {error: (-1.0, -1.5, -0.5, 0.01), score: (1.0, -0.5, 2.0, 0.2)}
    better, weak = compare_estimates(values, stored, error), compare_estimates(values, stored, score)
    assert (better.gain, better.low, better.high, better.p, better.n, better.held) == (1.0, 0.5, 1.5, 0.01, 8, True)
    assert (weak.gain, weak.low, weak.high, weak.p, weak.held) == (1.0, -0.5, 2.0, 0.2, False)
    apart = compare_estimates(values, {}, error)
    assert (apart.gain, apart.low, apart.high) == pytest.approx((1.0, 1.0 - 2**0.5, 1.0 + 2**0.5))
    assert math.isnan(apart.p)
    assert compare_estimates(values, stored, ("ResDM", "ResViT", "tau", "mae")) is None
    assert not Comparison(("a", "b", "tau", "mae"), 0.0, math.nan, math.nan, math.nan, 3).tested


# ── bad input, and what is written ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("table2", lambda f: f.drop(columns="p"), r"table2\.csv: columns missing: p; run notebooks/04_table2"),
        ("table4", lambda f: f.drop(columns="ci_low"), r"table4\.csv: columns missing: ci_low; run notebooks/06"),
        ("figure5", lambda f: f.drop(columns="condition"), r"figure5\.csv: columns missing: condition"),
        ("figure4", lambda f: pd.concat([f, f.tail(1)]), r"figure4\.csv: wrong_sex/ResDM/tau/auc stands twice"),
        ("table3", lambda f: f.assign(mean="high"), r"table3\.csv, line 2: mean 'high' is no number"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, spoil, message):
    config = make_config(tmp_path)
    write_outputs(config)
    path = config.figures / f"{name}.csv"
    write_csv(path, spoil(pd.read_csv(path)))
    with pytest.raises(ValueError, match=message):
        claims(config)


def test_an_empty_file_is_named(tmp_path):
    config = make_config(tmp_path)
    config.figures.mkdir(parents=True)
    (config.figures / "table1.csv").write_text("")
    with pytest.raises(ValueError, match=r"table1\.csv: no CSV table .*run notebooks/00_cohort"):
        claims(config)


def test_columns_beyond_the_needed_are_left_alone(tmp_path):
    config = make_config(tmp_path)
    other = figure_rows({"factual": 0.7, "no_age": 0.2, "shuffled_age": 0.1}, ("r",), 0.1)
    other += [row | {"against": "own"} for row in other if row["condition"] == "shuffled_age"]
    write_outputs(config, figure5=other, table4=[row | {"folds": "five"} for row in table4_rows(SOURCES)])
    frame = ledger(config)
    assert frame.loc[["figure5_tau", "diagnosis_tau"], "status"].tolist() == [HELD, HELD]
    assert set(read_output(config, "figure5")["subject"]) == {"factual", "no_age"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",chain,", ",chian,", r"claims\.csv, line \d+: kind 'chian'"),
        (",4.1,count", ",4.9,count", r"line \d+: section '4\.9'"),
        (",1274,", ",many,", r"printed 'many' is no number"),
        ("test_sets,4.1", "sets,4.1", r"id 'sets' stands twice"),
        ("best,table2", "best,table7", r"output 'table7'"),
        ("id,section", "id,chapter", r"columns id, chapter"),
    ],
)
def test_a_slip_in_the_printed_claims_is_named(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        read_claims(altered(tmp_path, "claims.csv", (old, new)))


def test_settings_of_the_code_are_the_codes():
    assert CODE["tokens"][0] == len(clip.tokens("a"))
    tower = PriorModule(tiny_prior()).tower.transformer.resblocks
    assert CODE["text_layers"][0] == sum(any(p.requires_grad for p in block.parameters()) for block in tower)
    pairs = [issubclass(method, PerTracer) for method in (Pix2Pix, SCGAN, TransUNet, ResViT, DDPM)]
    assert pairs == [True] * 3 + [False] * 2
    assert (CODE["models_per_pair"][0], CODE["unified_models"][0]) == (2, 1)


def test_settings_are_the_papers_where_a_profile_takes_them(tmp_path):
    names = ["text_encoder", "text_layers", "tokens", "eta_first", "eta_last"]
    resdm = ResidualDiffusionConfig()
    config = dataclasses.replace(make_config(tmp_path), methods={"ResDM": resdm})
    frame = ledger(config)
    assert frame.loc[names, "status"].tolist() == [SAME] * 5
    assert "norm and the projection after it are trained too" in frame.loc["text_layers", "reason"]
    small = dataclasses.replace(resdm, prior=tiny_prior(), eta_range=(0.2, 0.9))
    frame = ledger(dataclasses.replace(config, methods={"ResDM": small}))
    assert frame.loc[names, "status"].tolist() == [OTHER, OTHER, SAME, OTHER, OTHER]
    assert frame.loc["text_layers", "ours"] == "a small tower of its own, no CLIP"
    for methods in ({}, {"ResDM": RegressionConfig()}):
        frame = ledger(dataclasses.replace(config, methods=methods))
        assert (frame.loc[names, "reason"] == "configs/tiny.yaml has no residual diffusion ResDM").all()
        assert frame.loc["models_per_pair", "reason"] == "configs/tiny.yaml has none of Pix2Pix, SC-GAN, TransUNet"
    frame = ledger(dataclasses.replace(config, methods={"DDPM": DDPMConfig()}))
    assert frame.loc[["unified_models", "models_per_pair"], "status"].tolist() == [SAME, OTHER]
    assert frame.loc["unified_models", "reason"] == "taken by this profile: DDPM"


def test_settings_are_counted_apart_and_comparisons_once(tmp_path):
    config = make_config(tmp_path)
    write_outputs(config)
    write_work(config)
    table = claims(config)
    counts = table.frame["status"].value_counts()
    settings = table.frame["kind"] == "setting"
    said = f"Settings: {counts[SAME]} of {settings.sum()} {SAME}. Results: {counts[HELD]} {HELD}, "  # no control held
    assert headline(table.frame).startswith(said)
    assert table.blocks[0].title == headline(table.frame)
    assert sum(map(int, table.blocks[0].rows[-1][1:])) == len(printed_claims()) - settings.sum()
    assert set(having(table, HELD).frame["kind"]) == {"best", "chain", "close"}
    once = {row[0]: row[1:] for row in table.blocks[1].rows}
    # Table 2: six sentences; superior is best_amyloid and best_tau again, over_ddpm and smallest_difference parts of it
    assert once["Table 2"] == ("6", "76", "30", "30", "0", "0", "0")
    assert once["Figure 4"] == ("6", "12", "12", "12", "0", "0", "0")
    write_outputs(config, table2=quality_rows(GAINS | {"DDPM": -0.7}), table4=None)
    (config.figures / "table4.csv").unlink()
    once = {row[0]: row[1:] for row in claims(config).blocks[1].rows}
    assert once["Table 2"][3:] == ("24", "0", "6", "0")
    assert once["Table 4"][2:] == ("30", "0", "0", "0", "30")


# ── controls, trainings, planted status ───────────────────────────────────────────────────────────


def test_our_controls_stand_beside_the_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "resdm_suite.reporting.claims.CONTROLS", ("regression", "linear", "demographics", "template", "ceiling")
    )
    config = make_config(tmp_path)
    write_outputs(
        config, table2=quality_rows(GAINS | {"linear": -0.5, "template": 3.0}),
        table4=table4_rows(SOURCES | {"linear": 70.0}),
    )  # fmt: skip
    frame, table = ledger(config), claims(config)
    own = frame[frame["kind"] == "control"]
    expected = {"table2/regression": FAILED, "table2/linear": FAILED, "table2/template": HELD, "table4/linear": HELD}
    assert own["status"].to_dict() == {f"control/{name}": status for name, status in expected.items()}
    assert own.loc["control/table2/linear", ["printed", "ours"]].tolist() == ["–", "0 of 6"]
    assert "Aβ MAE, ResDM against linear: −0.50 % [−0.70, −0.30], p = 0.001" in own.iloc[1]["reason"]
    assert table.blocks[-1].title == "Beside the paper's claims: ResDM against our controls"
    assert len(table.blocks[-1].rows) == 4
    assert headline(table.frame) == headline(table.frame[table.frame["kind"] != "control"])


def write_scores(config, method: str, psnr: float) -> None:
    """Two people, one with two sessions; PSNR in the brain is as given on average over people."""
    rows = [
        {"person": person, "session": session, "tracer": tracer, "region": region, "mae": 1 / psnr, "ssim": psnr / 50}
        | {"psnr": psnr + off + 4 * (region == "whole")}
        for person, session, off in (("a", "1", 3.0), ("a", "2", 1.0), ("b", "1", -2.0))
        for tracer in TRACERS
        for region in ("whole", "brain")
    ]
    write_csv(config.predictions(method) / "scores.csv", pd.DataFrame(rows))


def test_each_training_is_held_against_the_sentence(tmp_path):
    resdm, ddpm = ResidualDiffusionConfig(), DDPMConfig()
    names = {"ResDM": 26.0, "ResDM@seed1": 25.0, "ResDM@seed2": 27.0, "DDPM": 25.4, "DDPM@seed1": 25.2}
    methods = {name: resdm if name.startswith("ResDM") else ddpm for name in names}
    config = dataclasses.replace(make_config(tmp_path), methods=methods)
    write_outputs(config)
    assert set(ledger(config)["trainings"]) == {""}  # no training has scores
    for name, psnr in names.items():
        write_scores(config, name, psnr)
    frame = ledger(config)
    # seed1: 25.0 is below 25.2; at seed2 DDPM, which has none, has its first training, 25.4
    assert frame.loc["over_ddpm_tau", "trainings"] == "2 of 3"
    assert frame.loc["over_ddpm_tau", "reason"].endswith("1 of 1 held. In 2 of 3 trainings")
    assert frame.loc["figure4_tau_acc", "trainings"] == frame.loc["loss_tau", "trainings"] == ""
    read = {path.parent.parent.name for path in claim_inputs(config) if path.name == "scores.csv"}
    assert read == set(names)


def test_accuracy_of_each_training_is_of_its_label(tmp_path):
    """+prior calls all right in its first training and all wrong in its second, Base half of them."""
    resdm = ResidualDiffusionConfig()
    config = dataclasses.replace(
        make_config(tmp_path), methods=dict.fromkeys(["Base", "+prior", "+prior@seed1"], resdm)
    )
    write_outputs(config)
    rows = [
        {"fold": 0, "source": source, "person": person, "session": "1", "age": 70, "sex": "F", "tracer": tracer}
        | {"label": label, "score": score, "threshold": 0.5, "target": target}
        for source, scores in {"Base": (1, 1), "+prior": (1, 0), "+prior@seed1": (0, 1)}.items()
        for person, label, score in zip("ab", (1, 0), scores, strict=True)
        for tracer in TRACERS
        for target in ("label", "planted")
    ]
    rows = [row | {"label": 1 - row["label"]} if row["target"] == "planted" else row for row in rows]
    write_csv(config.evaluation_folder / "status.csv", pd.DataFrame(rows))
    for name in config.methods:
        write_scores(config, name, 26.0)
    frame = ledger(config)
    assert frame.loc["prior_value", "trainings"] == "1 of 2"
    assert config.evaluation_folder / "status.csv" in claim_inputs(config)


def test_status_is_compared_by_its_label_and_the_planted_one_stands_beside(tmp_path):
    label = [row | {"target": "label"} for row in table4_rows(SOURCES)]
    planted = [row | {"target": "planted"} for row in table4_rows(SOURCES | {"ResDM": 60.0})]
    best, close = statuses(tmp_path, "diagnosis_tau", "close_amyloid", table4=planted + label)
    assert best[0] == close[0] == HELD
    assert best[1].endswith("By the planted status: 0 of 15 held")
    assert close[1] == "our gap [3.59, 6.41], printed 12.28; by the planted status [33.59, 36.41]"
    value = ledger(make_config(tmp_path)).loc["table4/ResDM/tau/auc"]
    assert value["ours"] == "90.00 ± 2.00"


def test_what_is_written(tmp_path):
    config = make_config(tmp_path)
    write_outputs(config)
    table = claims(config)
    written = save_table(table, config.figures, provenance(config, claim_inputs(config)))
    assert [path.name for path in written] == ["claims.csv", "claims.md", "claims.tex", "claims.json"]
    again = pd.read_csv(written[0], dtype=str, keep_default_na=False)
    assert list(again)[:4] == ["id", "section", "kind", "statement"]
    assert list(again)[4:12] == ["printed", "ours", "n", "unit", "where", "status", "reason", "trainings"]
    assert len(again) == len(table.frame)
    page = table.markdown()
    assert "not a reproduction" in page.splitlines()[0]
    for section in table.frame["section"].unique()[:-1]:  # the last is that of our controls
        assert page.count(f"\n### {'Section ' if section[0].isdigit() else ''}{section}") == 1
    assert all(statement.split(",")[0] in page for statement in table.frame["statement"])
    tex = table.latex()
    assert tex.isascii()
    assert tex.count("\\begin{longtable}") == tex.count("\\end{longtable}") == len(table.blocks)
    alone = having(table, CONTRADICTED)
    assert len(alone.frame) == len(alone.blocks[0].rows) == 9
    assert "Section 4.1: sets of Aβ-PET" in alone.markdown()
    assert having(table, MISSING).markdown().endswith("- none\n") is (MISSING not in set(table.frame["status"]))
