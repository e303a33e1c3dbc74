"""Inputs of the workflow's rules: every rule lists the modules that it imports, and no others."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

from resdm.settings import METHODS
from resdm_suite.apps.dependencies import code_digest, modules
from resdm_suite.profiles import load_config

PACKAGES = ("resdm", "resdm_suite")
MODULES = sorted(str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
COMMANDS = {
    "phantom": "resdm_suite.cohorts.phantom", "qc": "resdm_suite.reporting.qc", "ceiling": "resdm_suite.apps.ceiling",
    "evaluators": "resdm_suite.evaluation.downstream", "report": "resdm_suite.reporting.site",
}  # fmt: skip
DRAWS_ONLY = ("resdm_suite/reporting/", "resdm_suite/apps/model_card.py")
EXPENSIVE = ("preprocess", "train", "synthesise", "conditions", "ceiling")


@cache
def imported(path: str) -> frozenset[str]:
    """Files that a file imports itself, by its syntax tree; those for type checkers do not count."""
    nodes, names = [ast.parse((ROOT / path).read_text())], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        nodes += ast.iter_child_nodes(node)
    return frozenset().union(*(files_of(name) for name in names))


def files_of(name: str) -> set[str]:
    """The module of a dotted name and the packages around it."""
    parts = name.split(".")
    prefixes = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return {f for prefix in prefixes for f in (f"{prefix}.py", f"{prefix}/__init__.py") if f in MODULES}


def reached(start: set[str], cut: tuple[str, ...] = ()) -> set[str]:
    found, queue = set(), {path for path in start if not path.startswith(cut)}
    while queue:
        path = queue.pop()
        found.add(path)
        queue |= {file for file in imported(path) if not file.startswith(cut or ("-",))} - found
    return found


def expected(rule: str, method: str, notebook: str, config) -> set[str]:
    """Modules that a rule must list, from what it runs."""
    cut = DRAWS_ONLY if rule in EXPENSIVE else ()
    own = METHODS[config.method(method).kind].partition(":")[0] if method else ""
    of_method = reached(files_of(own), DRAWS_ONLY) if own else set()
    if rule in COMMANDS:
        return reached(files_of(COMMANDS[rule]), cut)
    if rule == "manifest":
        reader = files_of(f"resdm_suite.cohorts.readers.{config.cohort.source}")
        return reached(files_of("resdm_suite.cohorts.assembly") | reader)
    names = set()
    for cell in json.loads((ROOT / "notebooks" / notebook).read_text())["cells"]:
        for node in ast.walk(ast.parse("".join(cell["source"]))) if cell["cell_type"] == "code" else ():
            if isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    if method and config.method(method).kind != "residual_diffusion":
        cut = (*cut, "resdm_suite/apps/trace.py")  # Figure 1 is drawn of ResDM only
    return reached(set().union(*map(files_of, names)), cut) | of_method


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Rule, method and notebook → modules among its inputs, of a dry run of the smoke profile from no file."""
    folder = tmp_path_factory.mktemp("plan")
    for name in ("configs", "notebooks", "data_manifests", *PACKAGES, "Snakefile"):
        (folder / name).symlink_to(ROOT / name)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [Path(sys.executable).parent / "snakemake", "--dry-run", "--cores", "1", "--config", "profile=smoke"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    rules = {}
    for block in re.split(r"^(?=rule )", run.stdout, flags=re.MULTILINE)[1:]:
        rule = block[5 : block.index(":")]
        fields = dict(re.findall(r"^    (input|log|wildcards): (.*)$", block, flags=re.MULTILINE))
        method = fields.get("wildcards", "").removeprefix("method=")
        method = "ResDM" if rule in ("conditions", "uncertainty") else method
        number = re.search(r"/notebooks/(\d\d)_", fields.get("log", ""))
        notebook = next((ROOT / "notebooks").glob(f"{number[1]}_*.ipynb")).name if number else ""
        rules[rule, method, notebook] = {path for path in fields["input"].split(", ") if path.startswith("resdm")}
    return rules


def test_a_changed_module_reruns_exactly_the_rules_that_import_it(planned):
    config = load_config("smoke")
    assert {rule for rule, *_ in planned} >= {*COMMANDS, *EXPENSIVE, "manifest", "table2", "figure5", "claims"}
    listed = {key: files for key, files in planned.items() if key[0] != "all"}
    importing = {key: expected(*key, config) for key in listed}
    for module in MODULES:
        reruns = {key for key, files in listed.items() if module in files}
        assert reruns == {key for key, files in importing.items() if module in files}, module


def test_a_changed_template_reruns_its_page(planned):
    rules = {"notes_table1.md": {"cohort"}, "notes_suvr_fidelity.md": {"fidelity"}, "qc.html.j2": {"qc"}}
    rules["table.tex.j2"] = {"cohort", "table2", "table3", "table4", "planted", "fidelity", "claims", "uncertainty"}
    for path in (ROOT / "resdm_suite" / "reporting" / "templates").iterdir():
        if path.name in ("model_card.md", "notes_departures.md"):  # no page of this profile
            continue
        reruns = {rule for (rule, *_), files in planned.items() if path.relative_to(ROOT).as_posix() in files}
        expected = path.stem.removeprefix("notes_") if path.stem.startswith("notes_") else "report"
        assert reruns == rules.get(path.name, {expected}), path.name


def test_expensive_rules_depend_on_little(planned):
    def rules(module: str) -> set[str]:
        assert module in MODULES
        return {f"{rule} {method}".strip() for (rule, method, _), files in planned.items() if module in files}

    methods = load_config("smoke").methods
    assert not any(name.startswith(EXPENSIVE) for name in rules("resdm_suite/reporting/style.py"))
    assert rules("resdm/baselines/pix2pix.py") == {"train Pix2Pix", "synthesise Pix2Pix"}
    assert rules("resdm_suite/reporting/site.py") == {"report"}
    unet = {f"{rule} {name}" for name, method in methods.items() for rule in ("train", "synthesise")
            if method.kind in ("residual_diffusion", "regression")}  # fmt: skip
    trained = {name for name in rules("resdm/unet.py") if name.startswith(("train", "synthesise"))}
    assert trained == unet
    assert "manifest" in rules("resdm_suite/cohorts/readers/bids.py")
    assert "manifest" not in rules("resdm_suite/cohorts/readers/adni.py")


def test_code_cells_count_and_outputs_do_not(tmp_path):
    tree = json.loads((ROOT / "notebooks" / "02_train.ipynb").read_text())

    def stored(**change) -> str:
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}.ipynb"
        code = next(cell for cell in tree["cells"] if cell["cell_type"] == "code")
        copy.write_text(json.dumps(tree | {"cells": [code | change]}))
        return code_digest(copy)

    assert stored(outputs=[{"output_type": "stream", "name": "stdout", "text": "1"}], execution_count=3) == stored()
    assert stored(metadata={"trusted": True}) == stored()
    assert stored(source=["x = 1"]) != stored()


def test_names_of_the_method_package_are_followed_to_their_modules(tmp_path, monkeypatch):
    cell = {"cell_type": "code", "source": "%matplotlib inline\nfrom resdm import ResidualScheduler\nimport numpy"}
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [cell]}))
    monkeypatch.chdir(ROOT)
    assert {"resdm/__init__.py", "resdm/scheduler.py"} <= set(modules(str(path)))
    assert "resdm/unet.py" not in modules(str(path))
