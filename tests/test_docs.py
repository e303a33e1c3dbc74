"""The pages are correct: commands exist, links resolve, and the tutorials run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from notebook_cells import PICTURES, run_cells
from scipy.ndimage import correlate

import resdm
from resdm.method import build_method
from resdm.settings import ConfigError, method_from_dict
from resdm_suite.anatomy import mni_map
from resdm_suite.apps import cli
from resdm_suite.apps.prediction import Model
from resdm_suite.evaluation.image_quality import read_index, read_volume
from resdm_suite.paths import synthetic_path
from resdm_suite.profiles import load_config
from resdm_suite.reporting import style
from resdm_suite.reporting.tables import present_methods

PAGES = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")] + [
    ROOT / "benchmarks" / "README.md"
]
PAGES += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "data_manifests").rglob("*.md"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [re.sub(rf"(?m)^{indent}", "", text) for indent, text in found]


def lines(page: Path) -> list[str]:
    """Commands of the page's shell blocks, without comments."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines()) if line]


def named_commands(page: Path) -> list[str]:
    """Commands named in the running text, between backticks."""
    prose = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    return [re.sub(r"^\.venv/bin/", "", text) for text in re.findall(r"`([^`\n]+)`", prose)]


def subcommands(parser) -> dict:
    """Names → parsers, of a parser with subcommands."""
    return next((action.choices for action in parser._actions if isinstance(action.choices, dict)), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
class TestPages:
    def test_every_shell_line_is_a_command_that_exists(self, page):
        for line in lines(page):
            words = shlex.split(line)
            if words[0].endswith("resdm"):
                cli._parser().parse_args(words[1:])  # exits where it cannot be parsed
            elif words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= TARGETS, line
            else:
                assert words[0] in ("export", "cp", "docker", "git", "pip", "clinica"), line

    def test_every_command_and_option_in_the_text_exists(self, page):
        commands = subcommands(cli._parser())
        parsers = [*commands.values(), *(nested for sub in commands.values() for nested in subcommands(sub).values())]
        options = {option for parser in parsers for option in parser._option_string_actions}
        if page.parent.name == "benchmarks":  # scripts with other options
            scripts = "".join(path.read_text(encoding="utf-8") for path in page.parent.glob("*.py"))
            options |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', scripts))
        for text in named_commands(page):
            words = text.split()
            if words[0] == "resdm" and len(words) > 1 and words[1].islower() and not words[1].startswith("-"):
                assert words[1] in commands, text
                known = subcommands(commands[words[1]])
                assert not known or len(words) < 3 or words[2] in known, text
            if words[0] == "make" and len(words) > 1:
                assert words[1] in TARGETS or "=" in words[1], text
            assert not text.startswith("--") or words[0] in options, text

    def test_every_relative_link_resolves(self, page):
        text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            path = (page.parent / target) if target else page
            assert path.exists(), link
            if anchor:
                assert anchor in anchors(path), link


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ── the README ────────────────────────────────────────────────────────────────────────────────────


def test_every_notebook_profile_and_page_is_in_the_readme_which_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = [f"({place}/{path.name})" for place, kind in (("notebooks", "ipynb"), ("docs", "md"))
             for path in (ROOT / place).glob(f"*.{kind}")]  # fmt: skip
    assert [name for name in named if name not in text] == []
    assert [path.name for path in (ROOT / "configs").glob("*.yaml") if f"`{path.stem}`" not in text] == []
    assert len(text.splitlines()) <= 150


def test_every_page_notebook_and_table_is_in_the_contents_and_every_figure_in_the_gallery():
    """The site's navigation is the links of the contents."""
    contents, gallery = (ROOT / "docs" / f"{name}.md" for name in ("index", "gallery"))
    linked = set(re.findall(r"(?m)^- \[[^]]*\]\(([^)#]+)\)", contents.read_text(encoding="utf-8")))
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", gallery.read_text(encoding="utf-8")))
    found = {os.path.relpath(path, contents.parent) for path in (*PAGES, *ROOT.glob("notebooks/*.ipynb"))}
    found |= {os.path.relpath(path, contents.parent) for path in (ROOT / "figures").glob("phantom*/*.md")}
    assert found - linked == {contents.name}
    assert {os.path.relpath(path, gallery.parent) for path in ROOT.glob("figures/phantom*/*.png")} == shown


# ── environments ──────────────────────────────────────────────────────────────────────────────────


def test_image_and_dev_container_open_on_the_same_environment():
    text = (ROOT / "Dockerfile").read_text()
    python = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][0].partition("=")[2]
    assert re.search(rf"^FROM python:{re.escape(python)}\b", text, flags=re.MULTILINE)
    assert "-c constraints.txt -e '.[notebooks,dev]'" in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    read = {"pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}
    assert read <= {*re.search(r"^COPY (.*)\./$", text, flags=re.MULTILINE)[1].split()}
    tree = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert tree["image"].endswith(f"python:{python}")
    assert tree["postCreateCommand"] == "make env"


def test_the_image_leaves_out_what_git_ignores():
    ignored = {line.strip("*/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"}
    for line in (ROOT / ".gitignore").read_text().splitlines():
        assert line.startswith("#") or line.strip("*/") in ignored, line


def test_make_help_names_every_target(capfd):
    text = (ROOT / "Makefile").read_text()
    documented = set(re.findall(r"^([a-z]+): .*##", text, flags=re.MULTILINE))
    assert documented == TARGETS == set(re.search(r"\.PHONY: (.*)", text)[1].split())


def test_changelog_has_the_version_and_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)[:2] == ["Unreleased", resdm.__version__]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) <= kinds


def test_the_training_curves_of_the_faq_are_those_of_a_run():
    """Of the run in ``work/``, where there is one; adversarial training differs by 0.5 between CPUs."""
    text, models = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), load_config("phantom").work / "models"
    rows = re.findall(r"(?m)^\| (\S+)(?: \(([a-z, ]+)\))? \| ([\d.]+) → ([\d.]+) \| ([\d., ]+) \|$", text)
    assert len(rows) == 8
    if not all((models / name / "history.csv").is_file() for name, *_ in rows):
        pytest.skip("make reproduce trains the phantom profile")
    for name, what, first, last, scores in rows:
        history = pd.read_csv(models / name / "history.csv")
        losses = [column for column in history if column.startswith("loss_")]
        (loss, *_) = [column for column in losses if all(word in column for word in what.split(", "))]
        assert history[loss].iloc[[0, -1]].tolist() == pytest.approx([float(first), float(last)], rel=0.1), name
        apart = 0.6 if any("discriminator" in column for column in losses) else 0.35
        assert history["validation"].tolist() == pytest.approx([float(x) for x in scores.split(", ")], abs=apart), name


# ── how to change a figure ────────────────────────────────────────────────────────────────────────


def test_the_colour_of_a_method_changes_as_the_page_says(monkeypatch):
    monkeypatch.setattr(style, "COLOURS", dict(style.COLOURS))
    (code,) = blocks(ROOT / "docs" / "howto_change_a_figure.md", "python")
    exec(code)
    assert style.method_styles(["DDPM", "ResDM"])["ResDM"][0] == "#AA3377" != style.method_styles(["DDPM"])["DDPM"][0]


# ── the method in Python ──────────────────────────────────────────────────────────────────────────


def test_the_public_names_are_those_the_readme_promises():
    promised = re.findall(r"`from resdm import (.+?)`", (ROOT / "README.md").read_text(encoding="utf-8"))[0].split(", ")
    assert set(promised) < set(resdm.__all__) <= set(dir(resdm))
    assert all(getattr(resdm, name).__module__ == f"resdm.{resdm._PUBLIC[name]}" for name in resdm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Unet'"):
        resdm.Unet  # noqa: B018
    (block,) = re.findall(r"if TYPE_CHECKING:\n((?:    .+\n)+)", Path(resdm.__file__).read_text(encoding="utf-8"))
    typed = {module: names.split(", ") for module, names in re.findall(r"from resdm\.(\w+) import (.+)", block)}
    assert typed == resdm._MODULES


def test_the_example_takes_a_step_and_synthesises():
    (code,) = blocks(ROOT / "docs" / "python.md", "python")
    names: dict = {}
    before = "weights = [w.detach().clone() for w in method.unet.parameters()]\n"
    exec(code.replace("for name, loss", f"{before}for name, loss"), names)
    assert 0 < names["loss"].item() < 10
    assert any((old != new).any() for old, new in zip(names["weights"], names["method"].unet.parameters(), strict=True))
    assert names["synthetic"].shape == names["pet"].shape
    assert 0 <= names["synthetic"].min() < names["synthetic"].max() <= 1


# ── the tutorials ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder like a clone's, whose `phantom` profile is as small as `smoke`."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "configs").mkdir()
    smoke = (ROOT / "configs" / "smoke.yaml").read_text().replace("people: 20", "people: 12")
    for name in ("smoke", "phantom"):
        (folder / "configs" / f"{name}.yaml").write_text(smoke.replace("profile: smoke", f"profile: {name}"))
    shutil.copytree(ROOT / "data_manifests", folder / "data_manifests")
    return folder


def run(page: Path, **replace: str) -> None:
    """Run a page's shell lines, but for those of `make` (which the tests run elsewhere)."""
    for line in lines(page):
        for old, new in replace.items():
            line = line.replace(old, new)
        words = shlex.split(line)
        if words[0] == "resdm":
            quiet = ["--quiet"] * ("--quiet" in subcommands(cli._parser())[words[1]]._option_string_actions)
            assert cli.main([*words[1:], *quiet]) == 0, line
        elif words[0] == "cp":
            shutil.copy(*words[1:])
        else:
            assert words[0] in ("make", "export"), line


def test_a_method_from_the_page_trains_and_is_in_table_2(study, monkeypatch, capsys):
    page = ROOT / "docs" / "howto_add_a_baseline.md"
    monkeypatch.chdir(study)
    monkeypatch.syspath_prepend(study)
    (code,), (settings,) = blocks(page, "python"), blocks(page, "yaml")
    (study / "local_linear.py").write_text(code)
    smoke = (study / "configs" / "smoke.yaml").read_text().replace("profile: smoke", "profile: mine")
    (study / "configs" / "mine.yaml").write_text(smoke.replace("methods:\n", f"methods:\n{settings}"))
    run(page)
    config = load_config("mine")
    assert "method Local: local_linear:LocalLinear" in capsys.readouterr().out
    assert present_methods(config) == ["ResDM", "Local"]
    frame = run_cells("04", config, without=PICTURES)["frame"].set_index(["method", "tracer", "region", "metric"])
    row = frame.loc[("Local", "amyloid", "brain", "mae")]
    assert 0 < row["mean"] < 100
    assert row["n"] == frame.loc[("ResDM", "amyloid", "brain", "mae")]["n"] > 1
    assert 0 <= row["p"] <= 1  # tested against ResDM
    history = pd.read_csv(config.model("Local") / "history.csv")
    assert history["ridge"].gt(0).all()
    # The stored volume is the mean image plus the convolution of the MRI, by its stored weights.
    model, index = Model.load(config.model("Local")), read_index(config)
    person = index[index["present_amyloid"] == 1].iloc[0]
    mri = read_volume(config.volumes / person["t1w"], model.grid)
    weight, mean = (part[0].detach().numpy().squeeze() for part in (model.method.around.weight, model.method.mean))
    path = synthetic_path(config.predictions("Local"), person["person"], person["session"], person["amyloid_tracer"])
    expected = np.clip(mean + correlate(mri, weight, mode="constant"), 0, 1) * mni_map("brain", model.grid)
    np.testing.assert_allclose(nib.load(path).get_fdata(), expected, atol=1e-3)  # MRIs are stored as float16


def test_a_covariate_from_the_page_is_in_prompt_and_sidecar(study, capsys):
    """The setting of the page, with the column of the phantoms; then a training and a prediction."""
    page = ROOT / "docs" / "howto_add_a_prompt_covariate.md"
    (code,), (settings,) = blocks(page, "python"), blocks(page, "yaml")
    exec(code, {})
    (expected,) = re.findall("^# (Synthesize.*)$", code, flags=re.MULTILINE)
    assert capsys.readouterr().out == f"{expected}\n"
    assert "fields: [age, sex, education" in settings
    profile = (study / "configs" / "smoke.yaml").read_text().replace("profile: smoke", "profile: schooling")
    fields = profile.replace("prior: &prior {", "prior: &prior { fields: [age, sex, education],", 1)
    assert fields != profile
    (study / "configs" / "schooling.yaml").write_text(fields)
    for command in ("phantom {}", "manifest bids {}", "preprocess {}", "train {} ResDM", "predict {} ResDM"):
        assert cli.main([*command.format(study / "configs" / "schooling.yaml").split()]) == 0
    sidecars = (study / "work/schooling/predictions/ResDM/factual").rglob("*_desc-synth_pet.json")
    prompts = [json.loads(path.read_text())["prompt"] for path in sidecars]
    assert prompts
    assert all(prompt["education"] > 0 for prompt in prompts)
    model = Model.load(study / "work/schooling/models/ResDM")
    assert {*model.method.known} == {"education"}


def test_a_kind_with_a_colon_may_be_one_of_ours():
    """The class's annotation names its settings; unknown keys are refused."""
    ours = method_from_dict({"kind": "resdm.baselines.regression:Regression", "lambda_high": 0.5}, "x.yaml")
    assert type(ours).__name__ == "RegressionConfig"
    assert ours.lambda_high == 0.5
    with pytest.raises(ConfigError, match="unknown key 'lambda_hihg'"):
        method_from_dict({"kind": "resdm.baselines.regression:Regression", "lambda_hihg": 0.5}, "x.yaml")
    with pytest.raises(ConfigError, match=r"expected a subclass of resdm\.Method"):  # a class, known when it is built
        build_method(method_from_dict({"kind": "resdm_suite.profiles:Config"}, "x.yaml"), (16, 16, 16))


def test_a_users_table_reaches_table_2_and_a_synthetic_pet(study, smoke_folder, monkeypatch, tmp_path):
    page = ROOT / "docs" / "own_data.md"
    smoke = load_config(smoke_folder / "configs" / "smoke.yaml")  # the mock study: phantoms, now somebody's scans
    monkeypatch.chdir(study)
    frame = pd.read_csv(smoke.manifest, dtype=str, keep_default_na=False)
    (least,) = blocks(page, "text")
    for name in ("t1w", "amyloid", "tau"):
        frame[name] = [str((smoke.work / path).resolve()) if path else "" for path in frame[name]]
    frame[least.splitlines()[0].split(",")].to_csv(tmp_path / "table.csv", index=False)
    shutil.rmtree(study / "work" / "mine", ignore_errors=True)
    (study / "configs" / "mine.yaml").unlink(missing_ok=True)
    table, typed = tmp_path / "table.csv", "work/smoke/bids"  # a table in place of the page's simulated people
    places = {"source bids": "source csv", typed: str(table), "manifest bids": "manifest csv"}
    places |= {"new_T1w.nii.gz": frame["t1w"][0], "--out out": f"--out {tmp_path / 'out'}"}
    run(page, **places)
    (settings,) = blocks(page, "yaml")  # the page's profile is the one that `resdm init` writes
    written = (study / "configs" / "mine.yaml").read_text(encoding="utf-8")
    settings = settings.replace("source: bids", "source: csv").replace(f"<absolute path of {typed}>", str(table))
    assert yaml.safe_load(written) == yaml.safe_load(settings)
    config = load_config("mine")
    assert config.notice == "other data: not the paper's cohort"
    table = run_cells("04", config, without=PICTURES)["frame"]
    assert set(table["method"]) == {"ResDM", "regression", "template"}
    assert table["n"].gt(1).all()
    assert (config.work / "report" / "index.html").is_file()
    image = nib.load(next((tmp_path / "out").rglob("*trc-18FAV45*_pet.nii.gz")))
    assert np.isfinite(image.get_fdata()).all()


# ── the Makefile and the workflow ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("fails", "profile", "expected"), [
    ("0", "smoke", ["Done. Open the report:", "  {report}"]),
    ("1", "smoke", ["report of smoke", "Correct the cause and type the same command again: finished work stays."]),
    ("1", "missing", ["no profile"]),
])  # fmt: skip
def test_make_reproduce_ends_with_the_report_or_the_remedy(tmp_path, fails, profile, expected):
    if shutil.which("make") is None:
        pytest.skip("no make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    programs = {
        "snakemake": f"echo jobs; exit {fails}",
        # `resdm check` refuses files that a changed input made stale; the workflow makes those again
        "resdm": "echo $1 of $2; test $2 = smoke || { echo no profile >&2; exit 2; }; test \"$1 $3\" != 'check '",
    }
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, text in programs.items():
        (tmp_path / ".venv" / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / ".ready").write_text(f"{tmp_path}\n")
    command = ["make", "reproduce", f"PROFILE={profile}", "CORES=1", "VENV=.venv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (fails == "0")
    assert ("jobs" in done.stdout) == (profile == "smoke")  # a profile that cannot be read starts nothing
    lines = (done.stdout if profile == "smoke" else done.stderr).splitlines()
    last = [line.format(report=tmp_path / "work" / "smoke" / "report" / "index.html") for line in expected]
    found = [next((i for i, line in enumerate(lines) if line.startswith(text)), -1) for text in last]
    assert -1 not in found
    assert found == sorted(found)


def test_notebooks_run_in_the_environment_of_the_workflow(tmp_path):
    """Another environment's python3 kernel stands before ours, as modules of a cluster set it."""
    foreign = tmp_path / "share" / "jupyter"
    (foreign / "kernels" / "python3").mkdir(parents=True)
    spec = {"argv": ["/usr/bin/false", "{connection_file}"], "display_name": "site", "language": "python"}
    (foreign / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    (lines,) = re.findall(r'(?m)^os\.environ\["PATH"\].*\nos\.environ\["JUPYTER_PATH"\].*\n', text)
    assert "-k resdm -r config" in text
    code = f"import os, sys, types; workflow = types.SimpleNamespace(basedir={str(ROOT)!r})\n{lines}"
    code += "from jupyter_client import KernelManager; import shutil\n"
    code += "print(KernelManager(kernel_name='resdm').format_kernel_cmd()[0], shutil.which('papermill'))"
    environment = os.environ | {"JUPYTER_PATH": str(foreign), "PATH": "/usr/bin:/bin"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == [sys.executable, str(Path(sys.executable).parent / "papermill")], run.stderr
