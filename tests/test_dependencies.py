"""Inputs of the workflow's rules: every rule lists the modules that it imports, and no others."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import grimp
import pytest
from conftest import ROOT

from resdm.settings import METHODS
from resdm_suite.apps.dependencies import code_digest, modules
from resdm_suite.profiles import load_config

PACKAGES = ("resdm", "resdm_suite")
PATHS = [path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
FILES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): str(path) for path in PATHS}
COMMANDS = {
    "phantom": "resdm_suite.cohorts.phantom", "qc": "resdm_suite.reporting.qc", "ceiling": "resdm_suite.apps.ceiling",
    "evaluators": "resdm_suite.evaluation.downstream", "report": "resdm_suite.reporting.site",
    "audit": "resdm_suite.apps.memorisation",
}  # fmt: skip
DRAWS_ONLY = ("resdm_suite.reporting", "resdm_suite.apps.model_card")
EXPENSIVE = ("preprocess", "train", "synthesise", "conditions", "ceiling", "audit")


@cache
def import_graph(cut: tuple[str, ...]) -> grimp.ImportGraph:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    for name in [name for name in graph.modules if any(f"{name}.".startswith(f"{part}.") for part in cut)]:
        graph.remove_module(name)
    return graph


def reached(names: Iterable[str], cut: tuple[str, ...] = ()) -> set[str]:
    """Files of modules, of what they import, directly or not, and of the packages around."""
    graph = import_graph(cut)
    found, before = {name for name in names if name in graph.modules}, set()
    while found != before:
        before = found
        around = {name for name in graph.modules if any(one.startswith(f"{name}.") for one in found)}
        found = found.union(around, *map(graph.find_upstream_modules, found))
    return {FILES[name] for name in found}


def expected(rule: str, method: str, notebook: str, config) -> set[str]:
    """Modules that a rule must list, from what it runs."""
    cut = DRAWS_ONLY if rule in EXPENSIVE else ()
    of_method = reached([METHODS[config.method(method).kind].partition(":")[0]], DRAWS_ONLY) if method else set()
    if rule in COMMANDS:
        return reached([COMMANDS[rule]], cut)
    if rule == "manifest":
        return reached(["resdm_suite.cohorts.assembly", f"resdm_suite.cohorts.readers.{config.cohort.source}"])
    names = set()
    for cell in json.loads((ROOT / "notebooks" / notebook).read_text())["cells"]:
        for node in ast.walk(ast.parse("".join(cell["source"]))) if cell["cell_type"] == "code" else ():
            if isinstance(node, ast.ImportFrom):
                names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    if method and config.method(method).kind != "residual_diffusion":
        cut = (*cut, "resdm_suite.apps.trace")  # Figure 1 is drawn of ResDM only
    return reached(names, cut) | of_method


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
    for module in FILES.values():
        reruns = {key for key, files in listed.items() if module in files}
        assert reruns == {key for key, files in importing.items() if module in files}, module


def test_a_changed_template_reruns_its_page(planned):
    rules = {"notes_table1.md": {"cohort"}, "notes_suvr_fidelity.md": {"fidelity"}, "qc.html.j2": {"qc"}}
    rules["page.css"] = {"qc", "report"}
    rules |= {f"notes_{name}.md": {"trust"} for name in ("input_check", "intervals", "memorisation")}
    rules["table.tex.j2"] = {"cohort", "table2", "table3", "table4", "planted", "fidelity", "claims", "uncertainty",
                             "evaluation", "trust", "atn", "subgroups", "longitudinal"}  # fmt: skip
    for path in (ROOT / "resdm_suite" / "reporting" / "templates").iterdir():
        elsewhere = ("model_card.md", "notes_released_code.md", "notes_attributes.md")
        if path.name in elsewhere or path.stem.split(".")[0] in ("explorer", "browser_page"):  # no page of this profile
            continue
        reruns = {rule for (rule, *_), files in planned.items() if path.relative_to(ROOT).as_posix() in files}
        expected = path.stem.removeprefix("notes_") if path.stem.startswith("notes_") else "report"
        assert reruns == rules.get(path.name, {expected}), path.name


def test_expensive_rules_depend_on_little(planned):
    def rules(module: str) -> set[str]:
        assert module in FILES.values()
        return {f"{rule} {method}".strip() for (rule, method, _), files in planned.items() if module in files}

    methods = load_config("smoke").methods
    assert not any(name.startswith(EXPENSIVE) for name in rules("resdm_suite/reporting/style.py"))
    assert rules("resdm/baselines/pix2pix.py") == {"train Pix2Pix", "synthesise Pix2Pix"}
    assert rules("resdm_suite/reporting/site.py") == {"report"}
    unet = {f"{rule} {name}" for name, method in methods.items() for rule in ("train", "synthesise")
            if method.kind in ("residual_diffusion", "regression", "separate_diffusion")}  # fmt: skip
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
