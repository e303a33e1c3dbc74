"""The whole suite on the smoke profile, as `make reproduce PROFILE=smoke` runs it, in a separate folder."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from bids_dataset import check_dataset
from browser import open_page
from bs4 import BeautifulSoup
from conftest import ROOT, clone, run
from crawl import broken_links, fetched_from_a_network
from notebook_cells import pdf_text

from resdm.io import sha256
from resdm.settings import ConfigError
from resdm_suite.apps.archive import READABLE, archive
from resdm_suite.apps.figures import redraw
from resdm_suite.apps.stress import SHIFTS
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.profiles import load_config

NOTICE = "not a reproduction of the paper"
BOTH = ["planted", "suvr_fidelity", "uncertainty", "evaluation", "input_check", "intervals", "memorisation", "atn"]
BOTH += ["subgroups", "longitudinal"]
TABLES = [*BOTH, "table1", "table2", "table3", "table4", "claims"]
FIGURES = [*BOTH, "figure1", "figure2", "figure2_regions", "figure3", "figure4", "figure5", "table4_roc"]
FIGURES += ["counterfactuals", "qc"]


def snakemake(folder: Path, *arguments, profile: str = "smoke", code: int = 0) -> str:
    """Run the workflow in a folder; what it prints."""
    command = ["snakemake", "--cores", "2", "--rerun-incomplete", "--retries", "1", "--config", f"profile={profile}"]
    done = run(*command, *arguments, cwd=folder, code=code, PYTHONPATH=str(folder))
    return done.stdout + done.stderr


def jobs(dry_run: str) -> set[str]:
    return {line.split()[1].rstrip(":") for line in dry_run.splitlines() if line.startswith(("rule ", "localrule "))}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A copy of a clone, after a run of the smoke profile."""
    folder = clone(tmp_path_factory.mktemp("clone"))
    snakemake(folder)
    return folder


@pytest.fixture
def config(reproduced, monkeypatch):
    monkeypatch.chdir(reproduced)
    return load_config("smoke")


def test_leaves_tables_figures_notebooks_and_provenance(config):
    assert config.root.resolve() == Path.cwd().resolve()
    for name in TABLES:
        assert (config.figures / f"{name}.csv").stat().st_size > 0
        for suffix in (".md", ".tex"):
            assert NOTICE in (config.figures / (name + suffix)).read_text()
    for name in FIGURES:
        assert (config.figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert NOTICE in (config.figures / f"{name}.svg").read_text()
    for record in config.figures.glob("*.json"):
        assert config.digest() in record.read_text()
    executed = sorted((config.work / "notebooks").glob("*.ipynb"))
    by_method = {"02_train", "03_synthesise"}
    elsewhere = {"12_released_code", "18_stress", "22_attributes"}  # of other profiles, or a target of its own
    once = {path.stem for path in Path("notebooks").glob("[0-9]*.ipynb")} - by_method - elsewhere
    expected = once | {f"{notebook}_{name}" for notebook in by_method for name in config.methods}
    expected |= {"03_synthesise_conditions"}
    assert {path.stem for path in executed} == expected
    for path in executed:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not any(out.output_type == "error" for out in cell.get("outputs", [])), path.name
    for name in config.methods:
        for file in ("config.yaml", "provenance.json", "history.csv", "model.safetensors", "timing.json", "README.md"):
            assert (config.model(name) / file).is_file(), f"{name}: {file}"


def test_every_data_set_is_valid_bids(config):
    conditions = ("factual", "no_age", "samples")
    for folder in (config.source_root, config.volumes, *(config.predictions("ResDM", name) for name in conditions)):
        check_dataset(folder)


def test_the_report_links_every_result(config):
    folder = config.work / "report"
    tree = BeautifulSoup((folder / "index.html").read_text(), "html.parser")
    links = {unquote(tag["href"]) for tag in tree.find_all("a")}
    assert {f"files/{path.name}" for path in config.figures.iterdir()} <= links
    assert {f"notebooks/{path.stem}.html" for path in (config.work / "notebooks").glob("*.ipynb")} <= links
    assert tree.find(id="missing") is None
    assert tree.find(id="more") is None  # every figure belongs to a notebook
    assert NOTICE in tree.find("header").get_text()
    assert "resdm phantom smoke" in tree.find(id="timings").find_next("table").get_text()
    assert config.digest() in tree.get_text()
    assert broken_links(folder, config.work) == []
    assert fetched_from_a_network(folder) == []
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 30e6


@pytest.mark.parametrize(("width", "mobile"), [(1280, False), (390, True)], ids=["desktop", "phone"])
def test_the_report_in_a_browser(config, width, mobile):
    """Opened as files, offline: no error, no request, no broken picture, nothing wider than the window."""
    folder = (config.work / "report").resolve()
    pages = [folder / "index.html", *sorted((folder / "notebooks").glob("*.html"))]
    with open_page(width, is_mobile=mobile, device_scale_factor=1) as page:
        page.context.set_offline(True)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        for path in pages:
            page.goto(path.as_uri())
            page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
            page.wait_for_function("[...document.images].every(image => image.complete)")
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), path.name
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        assert page.errors == []
        assert all(url.startswith(("file:", "data:")) for url in asked)
        page.goto(pages[0].as_uri())
        assert page.evaluate("document.documentElement.scrollHeight") < (8000 if width == 1280 else 20000)
        page.click("nav a[href='#timings']")
        assert page.url.endswith("index.html#timings")
        page.click("#notebooks + div summary")
        page.click("#notebooks + div a >> nth=0")
        page.click("summary >> nth=0")  # code unfolds
        assert page.locator("details[open]").count() == 1
        page.click("text=All results")
        assert page.title() == "ResDM · smoke"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_accessible(config, scheme):
    """Rules of axe-core: names, contrast, headings, landmarks, focus. Every picture says what it shows."""
    folder = (config.work / "report").resolve()
    pages = ("index.html", "../qc/index.html", "notebooks/04_table2_comparison.html")
    with open_page(color_scheme=scheme) as page:
        for path in ((folder / name).resolve() for name in pages):
            page.goto(path.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
            # the contrast of thousands of cells of one style takes minutes
            page.evaluate("document.querySelectorAll('tr:nth-of-type(n+4)').forEach(row => row.remove())")
            faults = Axe().run(page).response["violations"]
            assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == [], path.name
            texts = page.evaluate("[...document.images].map(image => image.alt)")
            assert all(len(text) > 40 and "No description" not in text for text in texts), texts


def test_every_notebook_for_reading_runs_from_an_archive_without_torch(config, tmp_path):
    with zipfile.ZipFile(archive(config, tmp_path / "reading.zip", for_reading=True)) as packed:
        packed.extractall(tmp_path)
    made = tmp_path / "figures" / "smoke"
    before = {path.name: path.read_bytes() for path in made.iterdir() if path.suffix in (".csv", ".md", ".tex")}
    for name in ("table2", "table3", "table4", "suvr_fidelity", "subgroups"):  # made again
        for suffix in (".csv", ".md", ".tex"):
            (made / f"{name}{suffix}").unlink()
    command = ["python", ROOT / "tests" / "read_archive.py", "smoke", *READABLE]
    done = run(*command, cwd=tmp_path, OMP_NUM_THREADS="1")  # as in a job of Snakemake
    assert re.findall(r"(?m)^(\d\d)_\w+$", done.stdout) == list(READABLE)
    assert "| ResDM |" in (made / "table4.md").read_text(encoding="utf-8")
    assert [name for name, content in before.items() if (made / name).read_bytes() != content] == []


def test_figures_for_a_paper_leave_the_others_as_they_are(config, tmp_path):
    before = {path: sha256(path) for path in config.figures.iterdir()}
    readings = (config.evaluation_folder / "sex.csv").stat().st_mtime_ns
    redraw(config, ["figure4"], tmp_path, bare=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure4.pdf", "figure4.txt"]
    caption = (tmp_path / "figure4.txt").read_text(encoding="utf-8")
    assert caption.startswith("Figure 4: Conditioning on sex. phantom data: not a reproduction")
    test = read_index(config)
    scanned = test.loc[test["present_amyloid"] == 1, "person"].nunique()
    assert f"People: {test['person'].nunique()} test ({scanned} with amyloid PET" in caption
    assert "log odds of own sex" in pdf_text(tmp_path / "figure4.pdf")
    assert "Conditioning" not in pdf_text(tmp_path / "figure4.pdf")
    assert before == {path: sha256(path) for path in config.figures.iterdir()}
    assert (config.evaluation_folder / "sex.csv").stat().st_mtime_ns == readings
    with pytest.raises(ConfigError, match="no figure 'figure9'"):
        redraw(config, ["figure9"])


def test_a_second_run_does_nothing(reproduced):
    assert "Nothing to be done" in snakemake(reproduced)


def test_only_what_changed_runs_again(reproduced):
    """One changed baseline; tests/test_dependencies.py compares the inputs of every rule with the imports."""
    path = reproduced / "resdm" / "baselines" / "pix2pix.py"
    before = path.read_bytes()
    path.write_bytes(before + b"\n# changed\n")  # a new time alone is no change: snakemake compares small files
    notebook = reproduced / "notebooks" / "04_table2_comparison.ipynb"
    stored = notebook.read_text()
    notebook.write_text(stored.replace('"outputs": []', '"outputs": [], "metadata": {"trusted": true}', 1))  # as saved
    try:
        text = snakemake(reproduced, "--dry-run")
    finally:
        path.write_bytes(before)
        notebook.write_text(stored)
    reads = {"table2", "table3", "table4", "figure4", "figure5", "fidelity", "claims", "report"}
    reads |= {"atn", "subgroups", "longitudinal"}  # all methods' scores
    assert jobs(text) == {"train", "synthesise", *reads, "all"}
    assert "models/Pix2Pix/model.safetensors" in _outputs(text, "train")
    assert "models/ResDM/model.safetensors" not in _outputs(text, "train")


def _outputs(text: str, rule: str) -> str:
    blocks = [block for block in text.split("rule ") if block.startswith(rule)]
    return "\n".join(line for block in blocks for line in block.splitlines() if "output" in line)


@pytest.mark.parametrize(("profile", "message"), [
    ("0012", "(?m)^--config profile: .*cannot be a name"), ("null", "(?m)^--config profile: .*cannot be a name"),
    ("mine", r"configs/mine\.yaml: the notebooks compare with ResDM, which methods lacks"),
], ids=["a number of YAML", "nothing in YAML", "without ResDM"])  # fmt: skip
def test_a_profile_that_cannot_be_used_is_refused(profile, message, tmp_path):
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "phantom.yaml", tmp_path / "configs")
    (tmp_path / "configs" / "mine.yaml").write_text("extends: phantom\nmethods: [linear]\n")
    (tmp_path / "resdm_suite").symlink_to(ROOT / "resdm_suite")
    (tmp_path / "resdm").symlink_to(ROOT / "resdm")
    text = snakemake(tmp_path, "--snakefile", ROOT / "Snakefile", "--dry-run", profile=profile, code=1)
    assert re.search(message, text)


@pytest.mark.parametrize("profile", ["adni", "dlbs"])
def test_profiles_of_real_cohorts_plan_the_whole_dag(profile, tmp_path):
    """Without any file or data, every table, figure and training is planned."""
    for name in ("configs", "notebooks", "data_manifests", "resdm", "resdm_suite", "Snakefile"):
        (tmp_path / name).symlink_to(ROOT / name)  # but not work/
    text = snakemake(tmp_path, "--dry-run", profile=profile)
    stages = {"manifest", "preprocess", "cohort", "train", "synthesise", "conditions", "evaluators"}
    results = {"table2", "table3", "table4", "figure1", "figure4", "figure5", "claims"}
    assert stages | results | {"all"} <= jobs(text)
    assert not {"phantom", "planted"} & jobs(text)
    for method in load_config(profile).methods:
        assert f"work/{profile}/models/{method}/model.safetensors" in _outputs(text, "train")
    assert not (tmp_path / "work").exists()


def test_stress_curves_are_a_target_of_their_own(reproduced):
    """Last in this file: the report of the run above has no page of it."""
    target = Path("figures", "smoke", "stress.csv")
    assert not (reproduced / target).exists()
    snakemake(reproduced, "--", str(target))
    curves = pd.read_csv(reproduced / target, keep_default_na=False)
    assert {*curves["shift"]} == {"", *SHIFTS}
    assert pd.to_numeric(curves["psnr"]).between(5, 60).all()
