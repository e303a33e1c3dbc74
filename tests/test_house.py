"""The house rules that a script can see: doors in step, floors, notebooks, sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from resdm_suite.profiles import load_config

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAPER_FILES = ["scheduler.py", "prior.py", "unet.py", "losses.py", "residual_diffusion.py"]


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_every_dependency_is_pinned_inside_its_range():
    pins = pinned()
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["notebooks"], *extras["dev"]]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in constraints.txt"
        assert pins[name] in requirement.specifier, f"constraints.txt pins {name} {pins[name]} outside {requirement}"


def test_conda_door_opens_on_the_same_environment():
    tree = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(item for item in tree["dependencies"] if isinstance(item, str) and item.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.split("=")[1])
    (pip,) = [item["pip"] for item in tree["dependencies"] if isinstance(item, dict)]
    assert pip == ["-c constraints.txt", "-e .[notebooks,dev]"]
    assert "-c constraints.txt -e '.[notebooks,dev]'" in (ROOT / "Makefile").read_text()


def test_version_is_said_once():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["dynamic"] == ["version"]
    assert citation["version"] == __import__("resdm").__version__


def test_floors():
    run = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_ruff():
    ruff = Path(sys.executable).parent / "ruff"
    for command in (["check"], ["format", "--check"]):
        run = subprocess.run([ruff, *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout


def test_the_papers_five_files_stay_small():
    """The five files alone, and with all that they need in layers and pretraining."""

    def lines(paths):
        return sum(len(path.read_text().splitlines()) for path in paths)

    five = [ROOT / "resdm" / name for name in PAPER_FILES]
    assert lines(five) < 650
    assert lines([*five, ROOT / "resdm" / "pretraining.py", *(ROOT / "resdm" / "layers").glob("*.py")]) < 1100


def test_the_method_is_imported_without_the_suite():
    """In a folder of its own, with the packages that the method needs, and without those that are slow to import."""
    script = (
        "import sys\n"
        "from resdm import PriorModule, ResidualDiffusion, ResidualScheduler, UNet, load_model\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    slow = {"resdm_suite", "pandas", "scipy", "sklearn", "nibabel", "nilearn", "monai", "matplotlib", "open_clip"}
    assert not slow & set(loaded.stdout.split())


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
def test_profiles_are_valid_and_named_after_their_file(profile, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")  # where JupyterLab starts
    config = load_config(profile)
    assert config.profile == profile
    assert config.root == ROOT
    if config.cohort.kind == "phantom":
        assert "not a reproduction" in config.notice
        for method in config.methods.values():
            prior = getattr(method, "prior", None)
            assert prior is None or prior.weights == "none", "profiles without download say so"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebooks:
    def test_stored_without_outputs(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None

    def test_parameters_in_one_tagged_cell(self, path):
        cells = nbformat.read(path, as_version=4).cells
        tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1
        names = {node.targets[0].id for node in ast.parse(tagged[0].source).body}
        assert "config" in names
        assert names <= {"config", "method", "conditions", "person"}
        assert "profile.notice" in "".join(cell.source for cell in cells), "says what data it ran on"

    def test_no_function_no_class_no_loop(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                for node in ast.walk(ast.parse(cell.source)):
                    assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.For | ast.While)

    def test_every_name_is_defined_above(self, path):
        """Runs top to bottom in plain JupyterLab: no cell uses what only papermill or a later cell gives."""
        code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        ruff = Path(sys.executable).parent / "ruff"
        run = subprocess.run(
            [ruff, "check", "--select", "F821", "--isolated", "--stdin-filename", "cell.py", "-"],
            input=code, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout


def tracked() -> list[Path]:
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in run.stdout.split("\0") if name]


def test_nothing_large_is_tracked():
    large = [path.name for path in tracked() if path.is_file() and path.stat().st_size > 2e6]
    assert large == []


def test_no_path_of_a_machine_is_tracked():
    home = re.compile(rb"(?<![\w.])/(home|root|Users)/\w")
    mine = Path(__file__).name
    found = [path.name for path in tracked() if path.is_file() and path.name != mine and home.search(path.read_bytes())]
    assert found == []
