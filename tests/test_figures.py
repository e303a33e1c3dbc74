"""Figures: where things are drawn, the same bytes twice, notices, and any number of methods."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from notebook_cells import check_texts, draw, pdf_text, texts
from PIL import Image
from stored_cohort import GRID, RANGES, make_config, person

from resdm_suite.anatomy import regions
from resdm_suite.evaluation.suvr import regional_agreement
from resdm_suite.reporting import style
from resdm_suite.reporting.slices import FIELD_MM, plane, slice_name
from resdm_suite.reporting.style import heading, save_figure

NOTICE = "phantom data: not a reproduction of the paper's numbers"


def draw_figure1():
    one, rng = person(0), np.random.default_rng(0)
    pet = np.stack([one["amyloid"], one["tau"]])
    sentences = [f"Synthesize an {tracer} scan for a 74.0-year-old female subject" for tracer in ("Aβ-PET", "Tau-PET")]
    eta = np.linspace(0.04, 0.999, 15)
    states = np.stack([pet + eta[t - 1] * (one["mri"] - pet) for t in (1, 8, 15)], axis=1)
    trace = {
            "mri": one["mri"], "pet": pet, "forward": states, "forward_t": np.array([1, 8, 15]),
            "reverse": np.concatenate([states[:, ::-1], pet[:, None]], axis=1), "reverse_t": np.array([15, 8, 1, 0]),
            "eta": eta, "attention": rng.random((2, 3, 4, 4, 4)), "attention_names": np.array(["tracer", "age", "sex"]),
            "prompts": np.array(sentences),
    }  # fmt: skip
    profile = SimpleNamespace(notice=NOTICE, preprocess=SimpleNamespace(grid=GRID))
    return draw("09_figure1_method", profile=profile, trace=trace)


def draw_curves(notice=NOTICE):
    epochs = np.arange(1, 21)
    history = pd.DataFrame({"epoch": epochs, "step": 10 * epochs, "model": 1 / epochs})
    history["validation"] = np.where(epochs % 10 == 0, 50 + epochs, np.nan)
    return draw("02_train", method="ResDM", history=history, profile=SimpleNamespace(notice=notice))


def draw_regional():
    rng, rows = np.random.default_rng(0), []
    for method, noise in (("ResDM", 0.05), ("template", 0)):
        for tracer in RANGES:
            for region in ("summary", *regions(GRID)):
                for i, x in enumerate(rng.uniform(1, 2, 8)):
                    y = x + noise * rng.normal() if noise else 1.3
                    rows.append((method, f"sub-{i}", "1", tracer, region, x, y))
    columns = ["method", "person", "session", "tracer", "region", "real", "synthetic"]
    frame = pd.DataFrame(rows, columns=columns)
    textures = frame[["method", "tracer"]].drop_duplicates().assign(mean=0.8, std=0.1)
    points = frame[frame["region"] == "summary"].assign(real_std=0.1, synthetic_std=np.nan)
    names = {"points": points, "agreement": regional_agreement(frame), "textures": textures}
    return draw("04_table2_comparison", profile=SimpleNamespace(notice=NOTICE, individual=True), **names)


def test_a_kernel_of_another_environment_is_named(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    own = tmp_path / ".venv"
    assert "kernel" not in heading(config)  # an installation without `make env`
    own.mkdir()
    assert f"kernel of `{sys.prefix}`, not of `{own}`" in heading(config)
    (tmp_path / "link").symlink_to(own)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "link"))
    assert "kernel" not in heading(config)


DRAWN = {"figure1": draw_figure1, "curves": draw_curves, "regional": draw_regional}


@pytest.mark.parametrize("name", DRAWN)
def test_same_bytes_twice_whatever_the_users_settings(name, tmp_path):
    figure = DRAWN[name]()
    assert NOTICE in texts(figure)
    save_figure(figure, tmp_path / "a" / name, {"seed": 0})
    others = {"font.size": 20, "svg.hashsalt": "other", "image.cmap": "jet", "axes.facecolor": "red"}
    with matplotlib.rc_context(others):
        paths = save_figure(DRAWN[name](), tmp_path / "b" / name, {"seed": 0})
    assert [path.suffix for path in paths] == [".svg", ".png", ".json"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    svg = paths[0].read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    assert "<dc:date>" not in svg
    assert "<text" not in svg  # letters are paths, so no font of the reader's machine is needed
    with Image.open(paths[1]) as image:
        assert image.width == pytest.approx(200 * figure.get_figwidth(), abs=1)
        assert not {"Software", "Creation Time"} & set(image.info)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == sorted(p.name for p in paths)  # nothing left behind


def test_for_a_paper_without_heading_with_text_and_the_caption_beside(tmp_path, monkeypatch):
    headed = draw_curves()
    monkeypatch.setattr(style, "REDRAWN_AS", "pdf")
    monkeypatch.setattr(style, "_BARE", ["bare"])
    figure = draw_curves()
    pdf, caption, _ = save_figure(figure, tmp_path / "curves", {})
    assert caption.read_text(encoding="utf-8") == f"Training of ResDM. {NOTICE}."
    shown = pdf_text(pdf)
    assert "epoch" in shown
    assert "Training" not in shown
    assert "reproduction" not in shown
    assert figure.get_figheight() == pytest.approx(headed.get_figheight() - 0.30)
    save_figure(headed, tmp_path / "headed", {})
    for one, other in zip(figure.axes, headed.axes, strict=True):  # panels keep their size
        assert one.bbox.size == pytest.approx(other.bbox.size, abs=3)
    assert b"/FontFile2" in pdf.read_bytes()  # TrueType, as fonttype 42
    assert b"/Type3" not in pdf.read_bytes()


def test_same_bytes_in_another_process(tmp_path):
    code = "import sys; sys.path.insert(0, 'tests'); import test_figures as t; from pathlib import Path; " \
           "t.save_figure(t.draw_curves(), Path(sys.argv[1]), {})"  # fmt: skip
    root = str(Path(__file__).resolve().parents[1])
    for seed in ("1", "2"):
        environment = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": seed, "HOME": str(tmp_path), "PYTHONPATH": root}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], check=True, cwd=root, env=environment)
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"1{suffix}").read_bytes() == (tmp_path / f"2{suffix}").read_bytes()


@pytest.mark.parametrize("cut", [("x", 7.0), ("y", -20.0), ("z", 14.0)])
def test_a_slice_lies_where_it_says(cut):
    places = dict(zip("xyz", GRID.mm(), strict=True))
    for name, axis in zip({"x": "yz", "y": "xz", "z": "xy"}[cut[0]], (1, 0), strict=True):  # to the right; up
        volume = places[name]
        section = plane(volume, GRID, cut, order=1)
        values = section[section.shape[0] // 2] if axis == 1 else section[:, section.shape[1] // 2]
        expected = np.arange(FIELD_MM[name][0], FIELD_MM[name][1] + 1)
        inside = (expected > volume.min()) & (expected < volume.max())
        assert values[inside] == pytest.approx(expected[inside], abs=1e-4)
    assert plane(places[cut[0]], GRID, cut, order=1) == pytest.approx(cut[1], abs=1e-4)


def test_left_is_left():
    right = (GRID.mm()[0] > 0).astype(np.float32)  # the person's right hemisphere
    section = plane(right, GRID, ("z", 14.0))
    half = section.shape[1] // 2
    assert section[:, : half - 8].max() < 0.1
    assert section[:, half + 8 :].min() > 0.9


def test_a_coarse_map_covers_the_same_box():
    blocks = np.random.default_rng(0).random((4, 4, 4))
    fine = np.kron(blocks, np.ones((4, 4, 4)))
    assert np.array_equal(*(plane(volume, GRID, ("z", 14.0), order=0) for volume in (blocks, fine)))


def test_interpolation_adds_no_values():
    volume = np.random.default_rng(0).random(GRID.shape)
    section = plane(volume, GRID, ("y", -20.0))
    assert volume.min() <= section.min() <= section.max() <= volume.max()
    assert [slice_name(cut) for cut in (("z", -16.0), ("x", 7.0))] == ["z = −16 mm", "x = +7 mm"]


def test_figure1_shows_what_it_was_given():
    words = texts(draw_figure1())
    assert {"$x_0$", "$x_{1}$", "$x_{8}$", "$x_{15}$", r"$\hat{x}_0$", "$y_0$ (MRI)", "tracer", "age"} <= {*words}
    assert any("74.0-year-old" in word for word in words)
    images = [axes.images[0] for axes in draw_figure1().axes if axes.images]
    lows = {image.get_clim()[0] for image in images if image.get_cmap().name == "viridis"}
    assert lows == {0}, "a narrow scale makes noise look like structure"


def test_training_curves_have_a_panel_per_column_with_tick_labels():
    figure = draw_curves()
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == ["model", "validation"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    for axes in figure.axes:
        assert len([label for label in axes.get_yticklabels(which="both") if label.get_text()]) >= 2
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xdata(), [10, 20])  # epochs without validation: none
    png, metadata = figure._repr_png_()  # as a notebook shows it
    assert png.startswith(b"\x89PNG")
    assert metadata["alt"] == figure.caption != ""
    assert not [text for text in texts(draw_curves(notice="")) if "phantom" in text]


def test_the_regional_figure_has_a_row_of_panels_per_tracer():
    figure = draw_regional()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "Aβ-PET, cortical summary, ResDM"
    assert titles[4:] == ["tau-PET, cortical summary, ResDM", *titles[1:4]]
    assert [len(axes.lines) for axes in figure.axes[2:4]] == [3, 3]  # zero and two methods, r and bias
    check_texts(figure)


def test_the_report_needs_no_torch_and_no_pyplot():
    code = "import sys; from resdm_suite.reporting import provenance, slices, style, tables; " \
           "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
