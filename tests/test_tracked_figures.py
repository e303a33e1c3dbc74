"""Tracked tables and figures match the current settings of their profiles."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, git_files, run
from stored_cohort import make_config

from resdm.io import sha256, write_json
from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.profiles import Config, PreprocessConfig, load_config
from resdm_suite.reporting.provenance import outdated, provenance, stale, write_sidecar


def tracked(suffix: str) -> list[Path]:
    """Files below ``figures/`` that git tracks; without git, all files."""
    try:
        paths = [ROOT / name for name in git_files(ROOT, "figures")]
    except (pytest.skip.Exception, FileNotFoundError):
        paths = [path for path in (ROOT / "figures").glob("*/*") if path.parent.name != "smoke"]
    return sorted(path for path in paths if path.suffix == suffix)


def table(name: str, query: str) -> pd.DataFrame:
    """Rows of a tracked table."""
    return pd.read_csv(ROOT / "figures" / f"{name}.csv").query(query)


def words(name: str) -> str:
    """A page in one line, with the minus of ASCII."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split()).replace("−", "-")


def profile_of(path: Path) -> Config:
    """The profile of a tracked result; one that is gone must be removed from ``figures/``."""
    return load_config(ROOT / "configs" / f"{path.parent.name}.yaml")


def test_every_tracked_result_matches_its_profile():
    sidecars = tracked(".json")
    changed = {path: stale(profile_of(path), json.loads(path.read_text(encoding="utf-8"))) for path in sidecars}
    assert sidecars
    assert {path: parts for path, parts in changed.items() if parts} == {}, "run make reproduce with these profiles"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX on this machine")
@pytest.mark.parametrize("path", tracked(".tex"), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_tracked_latex_compiles_and_fits_the_page(path, tmp_path):
    """In a paper of two columns, with the packages that its first line names."""
    text = path.read_text(encoding="ascii")
    packages = re.search(r"\\usepackage\{.*?\}", text.splitlines()[0]).group()
    columns = r"\onecolumn" if "longtable" in packages else ""
    page = r"\documentclass[twocolumn]{article}\usepackage[letterpaper,textwidth=7in,textheight=9in]{geometry}"
    document = f"{page}{packages}\n\\begin{{document}}{columns}\n{text}\n\\end{{document}}\n"
    (tmp_path / "paper.tex").write_text(document, encoding="ascii")
    done = run("pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper", cwd=tmp_path, code=None)
    if "adjustbox.sty' not found" in done.stdout:
        pytest.skip("this LaTeX has no package adjustbox")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "too large" not in done.stdout


README_ROWS = {
    "mean PET": "template", "age and sex": "demographics", "SC-GAN": "SC-GAN", "ResDM without": "as_published",
    "the linear estimate": "linear_path", "linear": "linear", "**ResDM**": "ResDM", "regression": "regression",
    "ridge regression of the status": "mri", "ceiling": "ceiling",
}  # fmt: skip


def test_the_numbers_of_the_readme_are_those_of_the_tracked_tables():
    image = pd.concat(table(f"phantom/table{n}", "region == 'brain' and metric == 'psnr'") for n in (2, 3))
    status = table("phantom/table4", "target == 'planted' and metric == 'auc_mean_score'")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (.+ / .+|–) \| (.+ / .+) \|$", readme, re.M)
    names = {row: name for row, *_ in rows for start, name in README_ROWS.items() if row.startswith(start)}
    assert len(names) == len(rows) == len(README_ROWS)
    for row, psnr, auc in rows:
        for cell, frame, key, digits in ((psnr, image, "method", 1), (auc, status, "source", 0)):
            means = frame[frame[key] == names[row]].drop_duplicates("tracer").set_index("tracer")["mean"]
            expected = " / ".join(f"{means[tracer]:.{digits}f}" for tracer in ("amyloid", "tau")) if len(means) else "–"
            assert cell.strip("*") == expected, row


def test_the_joint_profiles_of_the_readme_are_those_of_the_tracked_table():
    means = table("phantom/atn", "target == 'planted' and markers == 'AT'").set_index(["source", "metric"])["mean"]
    readme = words("README.md")
    right = [f"{means[source, 'acc']:.0f} %" for source in ("ResDM", "mri", "majority")]
    agreed = [f"{means[source, 'kappa']:.2f}" for source in ("ResDM", "mri")]
    assert "From ResDM's PET, {} of profiles are right, from the MRI alone {};".format(*right[:2]) in readme
    assert f"the most frequent profile is right in {right[2]}. Cohen's κ is {agreed[0]}, {agreed[1]} and 0." in readme


def test_the_comparisons_of_the_readme_are_those_of_the_tracked_tables():
    """What the network adds to its linear estimate (its sign is turned), and ResDM's PET to the MRI."""
    readme = words("README.md")
    image = table("phantom/table2", "region == 'brain' and metric == 'psnr' and method == 'linear_path'")
    status = table("phantom/table4", "target == 'planted' and metric == 'auc_mean_score' and source == 'ResDM'")
    gain = -image.set_index("tracer")[["difference", "difference_high", "difference_low"]]
    added = status.set_index("tracer")[["over_mri", "over_mri_low", "over_mri_high"]]
    network = " and ".join("{:.2f} dB [{:.2f}, {:.2f}]".format(*gain.loc[tracer]) for tracer in ("amyloid", "tau"))
    assert f"The network adds {network} to it" in readme
    mri = ["{:.1f}{} [{:.1f}, {:.1f}]".format(added.loc[tracer].iloc[0], unit, *added.loc[tracer].iloc[1:])
           for tracer, unit in (("amyloid", " points"), ("tau", ""))]  # fmt: skip
    assert f"less that of the MRI alone, is {mri[0]} in amyloid and {mri[1]} in tau." in readme


def test_the_numbers_of_the_method_page_are_those_of_the_tracked_tables():
    page = words("docs/method.md")
    audit = table("phantom/memorisation", "index == 0").iloc[0]
    auc = "{auc:.2f} [{auc_low:.2f}, {auc_high:.2f}]".format(**audit)
    errors = "{:.1f} % against {:.1f} %".format(100 * audit["error_training"], 100 * audit["error_other"])
    people = f"({audit['training']:.0f} training people against {audit['other']:.0f} others, mean error {errors}"
    assert f"The default ResDM has {auc} {people} of the intensity range)" in page
    paths = pd.read_csv(ROOT / "benchmarks" / "results" / "trials.csv").query("method == 'linear_path'")
    means = paths.groupby(paths["changes"].notna()).mean(numeric_only=True)  # as shipped; of single voxels
    psnr, auc = ([f"{a:.2f}/{b:.2f}" for a, b in means[[f"{name}_amyloid", f"{name}_tau"]].to_numpy()]
                 for name in ("psnr", "auc"))  # fmt: skip
    assert f"a PSNR of {psnr[0]} dB (amyloid/tau), and its summary SUVR" in page
    assert f"with an AUC of {auc[0]}; from single voxels {psnr[1]} dB and {auc[1]} (" in page
    ends = ["mean", "ci_low", "ci_high"]
    status = table("phantom_uncoupled/table4", "target == 'planted' and metric == 'auc_adjusted'")
    rows = status.query("source == 'ResDM'").set_index("tracer")[ends]
    amyloid, tau = ("{:.0f} % [{:.0f}, {:.0f}]".format(*rows.loc[tracer]) for tracer in ("amyloid", "tau"))
    assert f"from ResDM's PET is {amyloid} for amyloid and {tau} for tau" in page
    made = status[~status["source"].isin(["real", "ceiling", "posterior", "template", "majority"])]
    assert ((made["ci_low"] <= 50) & (made["ci_high"] >= 50)).all(), "50 % lies in the interval of every method"
    joint = table("phantom_uncoupled/atn", "target == 'planted' and markers == 'AT' and metric == 'kappa'")
    kappa = "{:.2f} [{:.2f}, {:.2f}]".format(*joint.query("source == 'ResDM'").iloc[0][ends])
    assert f"κ of the joint profile is {kappa}" in page
    changes = pd.concat(table(f"phantom_null/figure{n}_effects", "unit == 'dB'") for n in (4, 5))
    change = "{:.2f} to {:.2f} dB".format(changes["estimate"].min(), changes["estimate"].max())
    assert f"changes ResDM's PSNR by {change}, every interval holds 0" in page
    assert changes["covers_zero"].eq(True).all()
    effects = table("phantom_null/planted", "source == 'ResDM' and effect in ['sex', 'age']")
    regions = effects.dropna(subset="covered").groupby(["effect", "tracer"])["covered"].agg(["sum", "size"])
    assert (regions == 14).all(axis=None)
    assert "in all 14 regions of both tracers" in page


def test_the_numbers_of_the_covariate_page_are_those_of_the_tracked_table():
    page = words("docs/howto_add_a_prompt_covariate.md")
    name, of_auc = "phantom_attributes/attributes", "tracer == 'amyloid' and quantity == 'auc'"
    auc = table(name, f"{of_auc} and change == 'value'").set_index("method")["value"]
    worth = table(name, f"{of_auc} and change == 'left out'").set_index("method")
    plasma, apoe4 = ("+{:.1f} [{:.1f}, {:.1f}]".format(*worth.loc[f"ResDM+{name}", ["value", "low", "high"]])
                     for name in ("plasma", "apoe4"))  # fmt: skip
    gains = f"from {auc['ResDM']:.0f} to {auc['ResDM+plasma']:.0f} % ({plasma} points; "
    best = table(name, f"{of_auc} and change == 'value' and method == 'ceiling'").set_index("attribute")
    best = best["value"].round().astype(int)
    gains += f"the linear model from {auc['linear']:.0f} to {auc['linear+plasma']:.0f}, the ceiling from "
    assert gains + f"{best['–']} to {best['plasma']})" in page
    assert f"APOE ε4 alone to {auc['ResDM+apoe4']:.0f} % ({apoe4}; the ceiling to {best['apoe4']})" in page
    of_age = "tracer == 'amyloid' and quantity == 'psnr' and attribute == 'age' and change == 'shuffled'"
    lost = table(name, of_age).set_index("method")["value"]
    assert f"it loses {lost['ResDM+all']:.1f} dB in amyloid where the age is shuffled, the linear model" in page
    assert f"the linear model {lost['linear+all']:.1f} dB." in page
    gains = table(name, "quantity == 'psnr' and change == 'left out'").set_index(["method", "tracer"])
    clinic = ("diagnosis", "mmse", "education")
    worth = {tracer: [f"{gains.loc[(f'ResDM+{name}', tracer), 'value']:.2f}" for name in clinic] for tracer in TRACERS}
    text = " and ".join("{}, {} and {} dB in {}".format(*worth[tracer], tracer) for tracer in TRACERS)
    assert f"they are worth {text}." in page
    ceiling = gains.loc["ceiling"].query("attribute == 'diagnosis'").loc[list(TRACERS), ["value", "low", "high"]]
    gain = ["{:.2f} dB [{:.2f}, {:.2f}]".format(*row) for row in ceiling.to_numpy()]
    rest = gains.loc["ceiling"].query("attribute in ('mmse', 'education')").sort_values("value").iloc[-1]
    assert "{:.2f} dB [{:.2f}, {:.2f}] at most by MMSE".format(*rest[["value", "low", "high"]]) in page
    assert f"the ceiling gains {gain[0]} and {gain[1]} by it" in page
    null = table(name, "attribute == 'marker' and change != 'value' and method != 'ceiling'")
    held = ((null["low"] <= 0) & (null["high"] >= 0)).sum()
    assert f"Of {len(null)} intervals about the null marker, in ResDM and the linear model, {held} hold 0." in page


def test_every_tracked_result_has_a_sidecar():
    names = {path.with_suffix("") for path in tracked(".json")}
    for path in (*tracked(".csv"), *tracked(".png")):
        parts = path.stem.split("_")  # atn_decision.csv belongs to atn.json
        stems = {path.with_name("_".join(parts[:n])) for n in range(1, len(parts) + 1)}
        assert stems & names, f"{path.relative_to(ROOT)}: no sidecar records its inputs"


def test_every_tracked_table_is_the_one_that_its_sidecar_lists():
    listed = {sidecar: json.loads(sidecar.read_text(encoding="utf-8")).get("files", {}) for sidecar in tracked(".json")}
    assert sum(map(len, listed.values())) >= 10
    for sidecar, files in listed.items():
        changed = [name for name, digest in files.items() if sha256(sidecar.with_name(name)) != digest]
        assert not changed, f"{changed}: not of {sidecar.name}; run make reproduce PROFILE={sidecar.parent.name}"


def image_tables() -> list[Path]:
    """Tracked tables of image quality by method, of profiles whose volumes are 0 outside the brain."""
    columns = {"method", "tracer", "region", "metric", "mean"}
    paths = [path for path in tracked(".csv") if columns <= set(pd.read_csv(path, nrows=0))]
    return [path for path in paths if profile_of(path).preprocess.mask]


@pytest.mark.parametrize("path", image_tables(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_predictions_were_zero_outside_the_brain(path):
    """Then PSNR over the whole grid is a constant above that in the brain, and MAE a constant factor below."""
    frame = pd.read_csv(path)
    share = mni_map("brain", Grid.of(profile_of(path).preprocess.grid)).mean()
    wide = frame.pivot_table("mean", ["method", "tracer"], ["metric", "region"])
    apart = wide["psnr"]["whole"] - wide["psnr"]["brain"]
    remedy = f"make reproduce PROFILE={path.parent.name}"
    # Six digits are printed; infinite scores (a perfect prediction) are not there.
    np.testing.assert_allclose(apart, -10 * math.log10(share), atol=2e-4, err_msg=remedy)
    np.testing.assert_allclose(wide["mae"]["whole"], share * wide["mae"]["brain"], rtol=2e-5, err_msg=remedy)


# ── the check itself ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def stored(tmp_path):
    """A table of a profile of two methods, made of the scores of one; and the profile."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    config = load_config(tmp_path / "configs" / "smoke.yaml")
    scores = config.predictions("DDPM") / "scores.csv"
    scores.parent.mkdir(parents=True)
    scores.write_text("psnr\n26\n")
    write_json(config.figures / "table9.json", provenance(config, [scores]))
    return config, config.figures / "table9.json"


def test_the_report_tells_results_of_this_run_from_others(stored):
    config, sidecar = stored
    scores = config.predictions("DDPM") / "scores.csv"
    assert outdated(config, "table9") == outdated(config, "table9_effects") == outdated(config, "table1") == ""
    assert outdated(replace(config, seed=3), "table9") == "made with other settings: seed"
    scores.write_text("psnr\n27\n")
    assert outdated(config, "table9") == "made of another work/smoke/predictions/DDPM/factual/scores.csv"
    scores.unlink()
    assert outdated(config, "table9").startswith("made of a missing work/smoke")
    sidecar.write_text("{")
    assert outdated(config, "table9") == "table9.json is damaged"


def test_an_edited_table_is_none_of_this_run(stored):
    """Of CSV, Markdown and LaTeX; a table that the sidecar does not list may be anybody's."""
    config, sidecar = stored
    for name in ("table9.csv", "table9_folds.csv", "table9.md", "table99.csv"):
        sidecar.with_name(name).write_text("psnr\n26\n")
    write_sidecar(sidecar.with_suffix(""), provenance(config))
    assert list(json.loads(sidecar.read_text())["files"]) == ["table9.csv", "table9.md", "table9_folds.csv"]
    assert outdated(config, "table9") == outdated(config, "table9_folds") == ""
    for name in ("table9.md", "table9_folds.csv"):
        sidecar.with_name(name).write_text("psnr\n62\n")
        assert outdated(config, name.partition(".")[0]) == f"changed after it was made: {name}"
    sidecar.with_name("table9.md").unlink()
    assert outdated(config, "table9") == "changed after it was made: table9.md"
    write_json(sidecar, {"files": [1]})
    assert outdated(config, "table9") == "table9.json is damaged"


def test_a_result_depends_on_what_its_inputs_depend_on(stored):
    config, sidecar = stored
    record = json.loads(sidecar.read_text())
    assert set(record["settings"]) == {"cohort", "preprocess", "privacy", "seed", "training", "methods.DDPM"}
    ddpm = config.methods["DDPM"]
    others = {name: replace(method, learning_rate=0.5) for name, method in config.methods.items()}
    assert stale(replace(config, methods=others | {"DDPM": ddpm}), record) == []
    assert stale(replace(config, methods=others), record) == ["methods.DDPM"]
    assert stale(replace(config, methods={"ResDM": others["ResDM"]}), record) == ["methods.DDPM"]  # it is gone
    assert stale(replace(config, preprocess=PreprocessConfig()), record) == ["preprocess"]
    assert stale(config, {"config": config.digest()}) == ["all"]  # from before settings were recorded


@pytest.mark.parametrize(("place", "expected"), [
    ("volumes/index.csv", set()),
    ("predictions/template/factual/scores.csv", set()),
    ("predictions/ResDM/samples/regional.csv", {"training", "methods.ResDM", "uncertainty"}),
    ("evaluation/sex.csv", {"evaluation"}),
    ("evaluation/status.csv", {"evaluation", "training", "methods"}),
    ("../../figures/tiny/table2.csv", {"evaluation", "training", "methods"}),
])  # fmt: skip
def test_parts_by_place(tmp_path, place, expected):
    config = make_config(tmp_path)
    path = config.work / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    parts = set(provenance(config, [path], parts=["fidelity"])["settings"])
    assert parts == {"cohort", "preprocess", "privacy", "seed", "fidelity"} | expected
