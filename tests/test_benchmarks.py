"""The benchmarks: counted cost, and the pages that they write."""

from __future__ import annotations

from dataclasses import replace

import ablation
import bench
import input_check
import memory
import numpy as np
import pandas as pd
import pytest
from measure import Case, count
from native_scans import make_visit


def test_counted_cost_of_the_released_network():
    """2.86 TFLOP per pass and 11.4 GiB saved at 128³; 4³ times less at 32³, except for attention (negligible)."""
    found = count(Case("released", 32))
    assert found["pass_gflop"] == pytest.approx(2860 / 64, rel=0.03)
    assert found["saved_bytes"] / 2 / 2**30 == pytest.approx(11.4 / 64, rel=0.03)
    assert found["parameters"] == pytest.approx(29.2e6, rel=2e-3)


def test_options_cut_the_counted_cost():
    full = Case("resdm", 32, together=True)
    haar = replace(full, stem="haar")
    costs = {name: count(case) for name, case in (("full", full), ("haar", haar))}
    assert count(replace(haar, channels_last=True)) == costs["haar"]
    costs["kept"] = count(replace(haar, checkpoint=True))
    assert costs["full"]["pass_gflop"] / costs["haar"]["pass_gflop"] == pytest.approx(8, rel=0.03)
    assert costs["full"]["saved_bytes"] / costs["haar"]["saved_bytes"] > 6
    assert costs["kept"]["saved_bytes"] < 0.6 * costs["haar"]["saved_bytes"]
    assert costs["kept"]["step_gflop"] > 1.1 * costs["haar"]["step_gflop"]


def test_memory_rows_fall_and_are_written(tmp_path):
    memory.main(["--size", "64", "--out", str(tmp_path)])
    frame = pd.read_csv(tmp_path / "memory_64.csv")
    assert frame["configuration"].tolist()[:3] == ["released, fp32", "ResDM, fp32, full resolution", "+ Haar stem"]
    saved = frame.set_index("configuration")["saved_gib"].drop("+ fused upsampling")  # it cuts work; its kernel is kept
    assert saved.iloc[1:].is_monotonic_decreasing
    page = (tmp_path / "memory_64.md").read_text()
    assert f"| + Haar stem | 64 × 64 × 64 | {frame['saved_gib'][2]:.2f} |" in page


def test_pages_hold_the_measurements(tmp_path, monkeypatch):
    """Ratios are of the released row of the same grid; slow rows have a mark: one step was timed."""
    jobs = []
    counted = {"pass_gflop": 1.0, "step_gflop": 40.0, "saved_bytes": 2**30, "weight_bytes": 1, "parameters": 1}

    def found(job):
        jobs.append(job)
        if job["what"] == "peak":
            return {"matmul_float32_gflop_s": 100.0, "conv_float32_gflop_s": 50.0}
        if job["what"] == "load":
            return {"whole_sessions_s": 7.0}
        slow = job["case"]["network"] == "released"
        times = {"train_s": 16.0 if slow else 2.0, "sample15_s": 120.0 if slow else 5.0, "sample2_s": 1.0}
        steps = {"sample_steps_timed": 1 if slow else 15, "train_repeats": 2}
        peaks = {"train_peak_bytes": (6 if slow else 1) * 2**30, "states_bytes": 2**29, "process_bytes": 8 * 2**30}
        return counted | times | steps | peaks

    monkeypatch.setattr(bench, "run_apart", found)
    monkeypatch.setattr(bench, "count", lambda case: counted)
    monkeypatch.setattr(bench, "device_name", lambda device: "2 × Some CPU")
    monkeypatch.setattr(bench, "computes_bf16", lambda: True)
    bench.main(["--sizes", "32", "--device", "cpu", "--threads", "2", "--out", str(tmp_path)])
    folder = tmp_path / "2_x_some_cpu"
    table = pd.read_csv(folder / "bench.csv").set_index("configuration")
    assert table.loc["released", "train_s_released_over"] == 1
    assert table.loc[bench.FAST, ["train_s_released_over", "sample15_s_released_over"]].tolist() == [8, 24]
    assert table.loc["+ Haar stem", "above_states_bytes_released_over"] == 11
    assert table.loc["+ Haar stem", "of_conv_peak"] == pytest.approx(0.4)
    page = (folder / "bench.md").read_text()
    assert "| released | 32 × 32 × 32 | 0.040 | 16 | 1.0 | 120 † | 1.0 | 1 | 6.00 | 1.0 | 5.50 | 1.0 " in page
    assert f"“{bench.FAST}” is 8.0 times as fast a step, 24.0 times as fast a synthesis" in page
    assert len(pd.read_csv(folder / "growth.csv")) == 8 + 5

    before, bytes_before = len(jobs), (folder / "bench.csv").read_bytes()
    again = ["--sizes", "32", "--device", "cpu", "--threads", "2", "--out", str(tmp_path)]
    bench.main(again)
    assert len(jobs) == before
    assert (folder / "bench.csv").read_bytes() == bytes_before
    (folder / "bench.csv").write_text("".join((folder / "bench.csv").read_text().splitlines(True)[:4]))
    bench.main(again)
    assert len(jobs) - before == len(table) - 3  # three rows were done when it was stopped


def test_gains_are_paired_and_positive_where_better(tmp_path):
    draw, metrics = np.random.default_rng(0), ablation.METRICS.items()
    people = [f"sub-{i}" for i in range(20)]
    own = {metric: draw.normal(size=20) for metric in ablation.METRICS}
    shift = {"full": 0.0, "haar": 1.0, "upsampling": 0.0, "bf16": 0.0, "full_time": -2.0}
    frames = [
        pd.DataFrame({m: own[m] + sign * (shift[key] + by * (key == "haar")) for m, (_, sign, _) in metrics})
        .assign(configuration=key, seed=seed, tracer=tracer, person=people)
        .sample(frac=1, random_state=i)
        for i, key in enumerate(ablation.ROWS)
        for tracer in ablation.TRACERS
        for seed, by in ((0, 0.5), (1, -0.5))
    ]
    intervals = ((0.1, 0.5), (-0.15, 0.5), (-0.3, 0.5), (-0.3, -0.1))
    assert [ablation.verdict(*ends, 0.2) for ends in intervals] == ["better", "the same", "undecided", "worse"]
    values, gains = ablation.compare(pd.concat(frames), seed=0)
    found = gains.groupby(["configuration", "over"])
    expected = {pair: shift[pair[0]] - shift[pair[1]] for pair in ablation.GAINS}
    assert found["gain"].mean().round(9).to_dict() == expected
    words = {-1: "worse", 0: "the same", 1: "better", 2: "better"}
    assert found["verdict"].unique().map(list).to_dict() == {pair: [words[gain]] for pair, gain in expected.items()}
    assert found["by_seed"].unique().loc[("haar", "full")].tolist() == ["1.5 0.5"]
    width = (gains["high"] - gains["low"]).groupby(gains["configuration"]).agg(["min", "max"])
    assert width.drop("haar")["max"].max() < 1e-9  # all people have the same gain
    assert width.loc["haar"].tolist() == pytest.approx([1, 1])  # its two trainings differ
    assert (values["high"] - values["low"]).min() > 0.5
    n = len(ablation.ROWS)
    cost = pd.DataFrame({"configuration": list(ablation.ROWS), "title": [row[0] for row in ablation.ROWS.values()],
                         "steps": [*[1160] * (n - 1), 140], "parameters": 2.6e6,
                         "seconds_per_step": [0.5, *[0.1] * (n - 2), 0.5], "peak_memory_bytes": 2**30})  # fmt: skip
    cost["faster"] = 0.5 / cost["seconds_per_step"]
    ablation.report(tmp_path, "phantom data", cost, values, gains, [0])
    assert "1160 steps against 140): better throughout" in (tmp_path / "ablation.md").read_text()
    rows = (n + len(expected)) * len(ablation.TRACERS) * len(ablation.METRICS)
    assert len(pd.read_csv(tmp_path / "ablation.csv")) == rows
    assert (tmp_path / "ablation.svg").stat().st_size > 0


@pytest.mark.slow
def test_a_quick_run_measures(tmp_path):
    bench.main(["--quick", "--device", "cpu", "--threads", "1", "--out", str(tmp_path)])
    (folder,) = tmp_path.glob("*/quick")
    table = pd.read_csv(folder / "bench.csv")
    assert (table[["train_s", "sample15_s", "train_peak_bytes", "step_gflop"]] > 0).all(axis=None)


@pytest.mark.parametrize("name", input_check.FAULTS)
def test_planted_faults_change_the_scan(name):
    scan = make_visit(3).t1
    changed = input_check.FAULTS[name](scan, np.random.default_rng(0))
    assert np.isfinite(changed.data).all()
    assert changed.data.min() >= 0
    assert not (np.array_equal(changed.data, scan.data) and np.array_equal(changed.affine, scan.affine))


def test_the_table_of_faults():
    """AUROC against the unchanged scans, and what each check refuses."""
    scores = {"": [1, 2, 3, 6], "found": [7, 8, 9, 10], "half": [2.5, 7, 2.5, 7]}
    rows = [
        {"fault": name, "scan": str(i), "score": score, "worst": "detail", "refused_before": name == "half" and i == 0}
        for name, values in scores.items() for i, score in enumerate(values)
    ]  # fmt: skip
    table = input_check.summarise(pd.DataFrame(rows), threshold=5.0).set_index("fault")
    assert table["auroc"].tolist()[1:] == [1.0, 12 / 16]
    assert table["refused"].tolist() == [0.25, 1.0, 0.5]
    assert table["either"].tolist() == [0.25, 1.0, 0.75]
    assert (table["low"] < table["refused"]).all()
