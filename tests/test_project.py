"""Rules of the project that a script can check: environments, imports, style, sizes, notebooks."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT, git_files, run
from mutations import FAULTS
from notebook_cells import read_code
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from read_archive import ABSENT

from resdm_suite.profiles import load_config

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAPER = [ROOT / "resdm" / f"{name}.py" for name in ("scheduler", "prior", "unet", "losses", "residual_diffusion")]
LAYERS = [ROOT / "resdm" / "pretraining.py", *(ROOT / "resdm" / "layers").glob("*.py")]
OPEN_PRIOR = [ROOT / "resdm" / f"{name}.py" for name in ("open_prior", "attributes", "method")]
SOURCE = {name: sorted((ROOT / name).rglob("*.py")) for name in ("resdm", "resdm_suite", "tests", "benchmarks")}


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_every_dependency_is_pinned_inside_its_range():
    pins = pinned()
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["notebooks"], *extras["dev"], *extras["docs"]]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in constraints.txt"
        assert pins[name] in requirement.specifier, f"constraints.txt pins {name} {pins[name]} outside {requirement}"


def test_the_environment_for_reading_is_a_part_of_the_whole_one():
    text = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8")
    names = {canonicalize_name(line) for line in text.splitlines() if line and line[0].isalnum()}
    assert names <= {*pinned()}
    assert not names & {*map(canonicalize_name, ABSENT)}
    needed = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert names - needed == {"ipykernel", "jupyterlab", "papermill"}


def test_pinned_versions_install_on_the_oldest_python():
    """A release that needs a later 3.11 made `pip install` fail with a conflict of versions, on Debian 12."""
    oldest = Requirement(f"python{PROJECT['requires-python']}").specifier
    (oldest,) = (Version(one.version) for one in oldest if one.operator == ">=")
    pins = pinned()
    for package in metadata.distributions():
        name, needed = canonicalize_name(package.name), package.metadata["Requires-Python"]
        if needed and str(pins.get(name)) == package.version:
            assert oldest in SpecifierSet(needed), f"{name} {package.version} needs Python {needed}"


def test_make_conda_and_docker_install_the_same_environment(tmp_path):
    tree = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(item for item in tree["dependencies"] if isinstance(item, str) and item.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.split("=")[1])
    (pip,) = [item["pip"] for item in tree["dependencies"] if isinstance(item, dict)]
    assert pip == ["-c constraints.txt", "-e .[notebooks,dev]"]
    assert "-c constraints.txt -e '.[notebooks,dev]'" in (ROOT / "Dockerfile").read_text()
    if not shutil.which("make"):
        pytest.skip("no make")
    for versions, constraints in (("pinned", "-c constraints.txt"), ("oldest", "-c v/oldest.txt"), ("newest", "")):
        command = ["make", "-n", "env", "VENV=v", f"VERSIONS={versions}"]
        assert f"--disable-pip-version-check {constraints} -e '.[notebooks,dev]'\n" in run(*command).stdout
    assert run(*command, "VERSIONS=new", code=None).returncode
    assert "pwd > .venv/.ready" in (ROOT / "Dockerfile").read_text()
    (tmp_path / ".ready").write_text(f"{ROOT}\n")
    command = ["make", "env", f"VENV={tmp_path}", "PYTHON=echo"]
    run(*command, "-q")
    (tmp_path / ".ready").write_text("/another/checkout\n")  # a moved or copied one
    assert f"|| echo -m venv --clear {tmp_path}\n" in run(*command, "-n").stdout
    empty = run("make", "--no-print-directory", "-n", "clean", "PROFILE=", code=None)
    assert (empty.stdout, "PROFILE is empty" in empty.stderr) == ("", True)


def test_citation_codemeta_and_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    meta, paper = json.loads((ROOT / "codemeta.json").read_text()), citation["preferred-citation"]
    assert PROJECT["dynamic"] == ["version"]
    assert citation["version"] == meta["version"] == __import__("resdm").__version__
    assert (citation["title"], citation["license"]) == (meta["name"], PROJECT["license"])
    assert meta["license"].endswith(f"/{PROJECT['license']}")
    assert citation["authors"] == PROJECT["authors"] == [{"name": one["name"]} for one in meta["author"]]
    assert (meta["description"], meta["keywords"]) == (PROJECT["description"], PROJECT["keywords"])
    assert meta["runtimePlatform"] == f"Python {PROJECT['requires-python']}"
    cited = meta["referencePublication"]
    assert (cited["name"], cited["datePublished"]) == (paper["title"], str(paper["year"]))
    names = [{"family-names": one["familyName"], "given-names": one["givenName"]} for one in cited["author"]]
    assert names == paper["authors"]


def test_hooks_and_workflow_run_what_make_runs():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pins, lint = pinned(), re.search(r"^lint:.*\n\t(.*)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    for hook in hooks["hooks"]:
        name, _, version = hook["additional_dependencies"][0].partition("==")
        assert name == "nbstripout" or (str(pins[name]) == version and name in lint)
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"].values()
    called = [step["run"].split()[1] for step in job["steps"] if "run" in step]
    assert called == ["env", "lint", "test", "docs"]
    assert {*called} <= {*targets}
    pythons = [Version(one["python"]) for one in job["strategy"]["matrix"]["include"]]
    assert min(pythons) in SpecifierSet(PROJECT["requires-python"])
    assert max(pythons) >= Version("3.14")


@pytest.mark.parametrize("command", ["lint-imports", "ruff check .", "ruff format --check ."])
def test_imports_and_style(command):
    run(*command.split())


def code_lines(path: Path) -> int:
    """Lines that hold code: without docstrings, comments and blank lines."""
    text = path.read_text(encoding="utf-8")
    documented = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            documented |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in documented for i, line in lines)


@pytest.mark.parametrize(("paths", "limit"), [
    (PAPER, 650),
    ([*PAPER, *LAYERS], 1100),
    ([*PAPER, *LAYERS, *OPEN_PRIOR], 1600),
], ids=["the paper's five files", "with their layers", "with the open prior and the contract"])  # fmt: skip
def test_the_method_is_short(paths, limit):
    """All lines count, comments and blank lines included."""
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths) <= limit


def test_line_budget():
    assert sum(map(code_lines, SOURCE["resdm"])) <= 3500


def test_functions_and_classes_stay_short():
    limits = {ast.FunctionDef: 80, ast.AsyncFunctionDef: 80, ast.ClassDef: 200}
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in (path for paths in SOURCE.values() for path in paths)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if node.__class__ in limits and node.end_lineno - node.lineno + 1 >= limits[node.__class__]
    ]
    assert long == []


@pytest.mark.parametrize(("file", "right", "faulty", "test"), FAULTS)
def test_a_planted_fault_has_its_place_and_its_test(file, right, faulty, test):
    assert (ROOT / file).read_text(encoding="utf-8").count(right) == 1
    name, _, function = test.partition("::")
    text = (ROOT / "tests" / name).read_text(encoding="utf-8")
    assert not function or f"\ndef {function.partition('[')[0]}(" in text


@pytest.mark.parametrize(("statement", "slow"), [
    ("from resdm import PriorModule, ResidualDiffusion, ResidualScheduler, UNet, load_model",
     "resdm_suite pandas scipy sklearn nibabel nilearn monai matplotlib open_clip"),
    ("import resdm_suite.anatomy, resdm_suite.preprocessing.volumes", "nilearn"),
    ("import resdm_suite.reporting.site", "torch nilearn matplotlib"),
    ("from resdm_suite.reporting.provenance import versions; assert 'torch' in versions()", "torch"),
], ids=["method", "preprocessing", "report", "versions"])  # fmt: skip
def test_what_is_slow_to_import_is_imported_where_it_is_needed(statement, slow):
    script = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    assert not set(slow.split()) & set(run("python", "-c", script).stdout.split())


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
            assert prior is None or prior.weights == "none", "a profile without download has no pretrained weights"


@pytest.mark.parametrize("cells", [read_code(path.stem) for path in NOTEBOOKS], ids=[path.stem for path in NOTEBOOKS])
class TestNotebooks:
    def test_stored_without_outputs(self, cells):
        assert not any(cell.outputs or cell.execution_count for cell in cells)

    def test_parameters_in_one_tagged_cell(self, cells):
        (tagged,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        names = {node.targets[0].id for node in ast.parse(tagged.source).body}
        assert "config" in names
        assert names <= {"config", "method", "conditions", "person", "table", "synthetic", "scale", "trained_on"}
        assert "heading(profile)" in "".join(cell.source for cell in cells), "names its data"

    def test_shows_its_analysis_in_few_lines_without_definitions(self, cells):
        lines = [line.strip() for cell in cells for line in cell.source.splitlines()]
        assert len([line for line in lines if line and not line.startswith("#")]) <= 90
        nodes = [node for cell in cells for node in ast.walk(ast.parse(cell.source))]
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in nodes)

    def test_every_name_is_defined_above(self, cells):
        """Runs top to bottom in JupyterLab: no cell uses a name that only papermill or a later cell defines."""
        code = "\n".join(cell.source for cell in cells)
        run("ruff", "check", "--select", "F821", "--isolated", "--stdin-filename", "cell.py", "-", text=code)

    def test_calls_the_package_as_it_is(self, cells):
        """Every call of an imported function of ours has arguments that the function takes."""
        nodes, ours = [node for cell in cells for node in ast.walk(ast.parse(cell.source))], {}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module.startswith("resdm"):
                module = import_module(node.module)
                ours |= {name.asname or name.name: getattr(module, name.name, None) for name in node.names}
        for node in nodes:
            function = (
                ours.get(node.func.id) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            )
            if callable(function) and not any(isinstance(value, ast.Starred) for value in node.args):
                keywords = {word.arg: None for word in node.keywords if word.arg}
                inspect.signature(function).bind_partial(*node.args, **keywords)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_line_by_line(path):
    """As Jupyter writes it: a change shows the lines that changed."""
    assert path.read_text(encoding="utf-8") == nbformat.writes(nbformat.read(path, nbformat.NO_CONVERT)) + "\n"


def test_nothing_large_and_no_path_of_a_machine_is_tracked():
    home = re.compile(rb"(?<![\w.])/(home|root|Users)/\w")
    paths = [ROOT / name for name in git_files()]
    assert [path.name for path in paths if path.stat().st_size > 2e6] == []
    assert [path.name for path in paths if path != Path(__file__) and home.search(path.read_bytes())] == []
