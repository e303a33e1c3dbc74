# The DAG: every rule is one call of a notebook by papermill, or of the command that a user would type.
#
#   snakemake --cores all --config profile=phantom
#
# Stages meet on disk below work/<profile>/. Python imports are not tracked, so each rule lists the modules it depends
# on: a changed figure module redraws figures and trains nothing. Executed notebooks stand under `log:`, so a failed run
# keeps them; state.pt and the volumes of single people are not declared, so a killed run goes on from them.
import importlib.util
import json

from resdm.config import load_config

PROFILE = config.get("profile", "phantom")
SETTINGS = load_config(f"configs/{PROFILE}.yaml")
WORK, FIGURES = f"work/{PROFILE}", f"figures/{PROFILE}"
METHODS = list(SETTINGS.methods)
VARIANTS = [name for name in METHODS if name.partition("@")[0] in ("Base", "+L_high", "+prior", "ResDM", "as_published")]  # of Table 3
COMPARED = [name for name in METHODS if name.partition("@")[0] == "ResDM" or name not in VARIANTS]  # in Table 2
BASELINES = {"pix2pix", "scgan", "transunet", "resvit"}


def digest(*parts):
    """What of the configuration a rule depends on: another value runs it again."""
    return SETTINGS.digest(*parts)


def package(*names):
    return [f"resdm/{name}.py" for name in names]


def method_modules(wildcards):
    """The files of one method: a changed baseline trains that baseline only."""
    kind = SETTINGS.method(wildcards.method).kind
    if ":" in kind:  # module:Class, from outside
        return [*package("methods/base"), importlib.util.find_spec(kind.partition(":")[0]).origin]
    paper = ["scheduler", "prior", "clip", "lessons", "paths", "unet", "haar", "recompute", "shelf", "upsample", "losses"]
    paper += ["methods/residual_diffusion", "methods/trace"]
    own = {"residual_diffusion": paper, "regression": [*paper, "methods/regression"], "demographics": ["methods/linear"]}.get(kind, [f"methods/{kind}"])
    if kind == "released":
        own += ["scheduler", "prior", "clip", "lessons", "unet", "haar", "recompute", "shelf", "upsample", "losses"]
    return package("methods/base", *own, *(["methods/adversarial"] if kind in BASELINES else []))


DATA = package("config", "anatomy", "io", "leakage", "cohort/manifest", "cohort/dataset")
PAPERMILL = "papermill {input.notebook} {log.notebook} --cwd . --no-progress-bar -k python3 -p config {PROFILE}"
TABLES = package("config", "anatomy", "io", "leakage", "evaluation/image_quality", "evaluation/statistics", "report/tables")


CONDITIONS = SETTINGS.conditions
FIGURE4 = {"no_sex", "wrong_sex"} <= set(CONDITIONS)
FIGURE5 = {"no_age", "shuffled_age"} <= set(CONDITIONS)
COUNTERFACTUALS = {"wrong_sex", "tracer_only", "shuffled"} <= set(CONDITIONS)
RELEASED = [name for name in METHODS if SETTINGS.method(name).kind == "released"]
RESULTS = ["table1.csv", "table2.csv", "figure1.png", "table4.csv"]
RESULTS += ["table3.csv"] * ("Base" in METHODS) + ["planted.csv"] * (SETTINGS.cohort.kind == "phantom")
RESULTS += ["figure4.png"] * FIGURE4 + ["figure5.png"] * FIGURE5
RESULTS += ["suvr_fidelity.csv"] + ["counterfactuals.png"] * COUNTERFACTUALS
LEDGER = [f"{FIGURES}/{name}" for name in RESULTS if name.endswith(".csv") and name != "suvr_fidelity.csv"]
LEDGER += [f"{FIGURES}/{name}" for name in ("figure4.csv",) * FIGURE4 + ("figure5.csv",) * FIGURE5]
RESULTS += ["claims.csv", "qc.png"]
RESULTS += ["uncertainty.csv"] * (SETTINGS.uncertainty.method in METHODS)
if RELEASED:
    RESULTS = ["table1.csv", "departures.csv"]  # a profile of its own


wildcard_constraints:
    method="(?!ceiling/)[^/]+",  # no method: a rule of its own


rule all:
    input:
        [f"{FIGURES}/{name}" for name in RESULTS],
        f"{WORK}/report/index.html",


if SETTINGS.cohort.kind == "phantom":

    rule phantom:
        input:
            package("cohort/phantom", "anatomy"),
        output:
            f"{WORK}/bids/participants.tsv",
        params:
            digest("cohort.phantom", "seed"),
        threads: workflow.cores
        shell:
            "resdm phantom {PROFILE} --jobs {threads}"


READER = {"csv": "table", "released": "released_layout"}.get(SETTINGS.cohort.source, SETTINGS.cohort.source)
READERS = ["bids", "matching", "manifest"] + [READER] * (READER != "bids")
READERS += {"adni": ["adni_tables"], "openneuro": ["download"]}.get(READER, [])


# A source of real people is no input: it may be terabytes, and lie on another disk.
rule manifest:
    input:
        f"{WORK}/bids/participants.tsv" if SETTINGS.cohort.kind == "phantom" else [],
        package(*(f"cohort/{name}" for name in READERS)),
    output:
        f"{WORK}/manifest.csv",
    params:
        digest("cohort", "seed"),
    shell:
        "resdm manifest {SETTINGS.cohort.source} {PROFILE}"


rule preprocess:
    input:
        manifest=f"{WORK}/manifest.csv",
        notebook="notebooks/01_preprocess.ipynb",
        modules=DATA + package("cohort/registration", "cohort/volumes"),
    output:
        f"{WORK}/volumes/index.csv",
        f"{WORK}/volumes/cohort.npy",
        f"{WORK}/volumes/template_amyloid.nii.gz",
        f"{WORK}/volumes/template_tau.nii.gz",
    log:
        notebook=f"{WORK}/notebooks/01_preprocess.ipynb",
    params:
        digest("cohort", "preprocess"),
    threads: workflow.cores
    shell:
        PAPERMILL


# A rule of its own, though notebook 01 does the same: a changed picture must not remake the volumes.
rule qc:
    input:
        f"{WORK}/volumes/index.csv",
        modules=package("config", "anatomy", "io", "cohort/qc", "report/figures", "report/provenance", "report/qc"),
    output:
        f"{WORK}/qc/qc.csv",
        f"{WORK}/qc/index.html",
        multiext(f"{FIGURES}/qc", ".svg", ".png"),
    threads: workflow.cores
    shell:
        "resdm qc {PROFILE} --jobs {threads}"


rule cohort:
    input:
        f"{WORK}/volumes/index.csv",
        "data_manifests/paper/table1.csv",
        notebook="notebooks/00_cohort.ipynb",
        modules=TABLES + package("cohort/volumes", "report/provenance"),
    output:
        multiext(f"{FIGURES}/table1", ".csv", ".md", ".tex"),
    log:
        notebook=f"{WORK}/notebooks/00_cohort.ipynb",
    shell:
        PAPERMILL


rule train:
    input:
        rules.preprocess.output,
        method_modules,
        notebook="notebooks/02_train.ipynb",
        modules=DATA + package("batch", "checkpoint", "training"),
    output:
        f"{WORK}/models/{{method}}/model.safetensors",
        f"{WORK}/models/{{method}}/history.csv",
    log:
        notebook=f"{WORK}/notebooks/02_train_{{method}}.ipynb",
    params:
        lambda wildcards: digest(f"methods.{wildcards.method}", "training", "seed"),
    priority: 1  # the long jobs first: the short ones behind them then end together
    threads: SETTINGS.training.threads or workflow.cores
    shell:
        PAPERMILL + " -p method {wildcards.method}"


SYNTHESIS = DATA + package("batch", "checkpoint", "synthesis", "evaluation/image_quality")
CEILING = [f"{WORK}/predictions/ceiling/factual/scores.csv"] * (SETTINGS.cohort.kind == "phantom")


rule synthesise:
    input:
        f"{WORK}/models/{{method}}/model.safetensors",
        method_modules,
        notebook="notebooks/03_synthesise.ipynb",
        modules=SYNTHESIS,
    output:
        f"{WORK}/predictions/{{method}}/factual/scores.csv",
    log:
        notebook=f"{WORK}/notebooks/03_synthesise_{{method}}.ipynb",
    params:
        digest("privacy"),
    threads: SETTINGS.training.threads or workflow.cores
    shell:
        PAPERMILL + " -p method {wildcards.method}"


if CEILING:

    rule ceiling:
        input:
            f"{WORK}/volumes/index.csv",
            modules=DATA
            + package("cohort/phantom", "cohort/registration", "cohort/volumes", "cohort/ceiling", "evaluation/image_quality"),
        output:
            CEILING,
            f"{WORK}/predictions/ceiling/factual/latent.csv",
        params:
            digest("cohort", "preprocess", "seed"),
        shell:
            "resdm ceiling {PROFILE}"


# All in one job: a job costs its imports.
rule conditions:
    input:
        f"{WORK}/models/ResDM/model.safetensors",
        notebook="notebooks/03_synthesise.ipynb",
        modules=SYNTHESIS,
    output:
        expand(f"{WORK}/predictions/ResDM/{{condition}}/scores.csv", condition=CONDITIONS),
    log:
        notebook=f"{WORK}/notebooks/03_synthesise_conditions.ipynb",
    params:
        conditions=json.dumps(CONDITIONS),
    priority: 1
    threads: SETTINGS.training.threads or workflow.cores
    shell:
        PAPERMILL + " -p method ResDM -y 'conditions: {params.conditions}'"


rule table2:
    input:
        expand(f"{WORK}/predictions/{{method}}/factual/scores.csv", method=COMPARED),
        CEILING,
        "data_manifests/paper/table2.csv",
        notebook="notebooks/04_table2_comparison.ipynb",
        modules=TABLES + package("evaluation/suvr", "report/cases", "report/figures", "report/provenance"),
    output:
        multiext(f"{FIGURES}/table2", ".csv", ".md", ".tex"),
        multiext(f"{FIGURES}/figure2", ".svg", ".png"),
    log:
        notebook=f"{WORK}/notebooks/04_table2_comparison.ipynb",
    params:
        digest("privacy"),
    shell:
        PAPERMILL


rule figure1:
    input:
        f"{WORK}/predictions/ResDM/factual/scores.csv",
        notebook="notebooks/09_figure1_method.ipynb",
        modules=package("config", "anatomy", "io", "report/cases", "report/figures", "report/provenance"),
    output:
        multiext(f"{FIGURES}/figure1", ".svg", ".png"),
    log:
        notebook=f"{WORK}/notebooks/09_figure1_method.ipynb",
    params:
        digest("privacy"),
    shell:
        PAPERMILL


# ── what evaluators fitted on real PET see ────────────────────────────────────────────────────────

READINGS = package("evaluation/effects", "evaluation/resampling", "evaluation/statistics")
EVALUATORS = READINGS + package("config", "anatomy", "io", "leakage", "evaluation/image_quality", "evaluation/suvr")
EVALUATORS += package("evaluation/planted", "evaluation/networks", "evaluation/fitting", "evaluation/downstream")


# Beside the trainings: they need no synthetic PET. Their files are not declared: a second run takes what is there.
rule evaluators:
    input:
        rules.preprocess.output,
        modules=EVALUATORS,
    output:
        touch(f"{WORK}/evaluation/fitted"),
    params:
        digest("evaluation", "preprocess", "seed"),
    priority: 1
    threads: SETTINGS.training.threads or workflow.cores
    shell:
        "resdm evaluators {PROFILE}"


rule table4:
    input:
        rules.evaluators.output,
        expand(f"{WORK}/predictions/{{method}}/factual/scores.csv", method=METHODS),
        CEILING,
        "data_manifests/paper/table4.csv",
        notebook="notebooks/06_table4_diagnosis.ipynb",
        modules=EVALUATORS + package("report/tables", "report/diagnosis", "report/figures", "report/provenance"),
    output:
        multiext(f"{FIGURES}/table4", ".csv", ".md", ".tex"),
        multiext(f"{FIGURES}/table4_roc", ".svg", ".png"),
        f"{FIGURES}/table4_calibration.csv",
        f"{WORK}/evaluation/status.csv",
    log:
        notebook=f"{WORK}/notebooks/06_table4_diagnosis.ipynb",
    shell:
        PAPERMILL


CONDITIONED = EVALUATORS + package("report/conditioning", "report/figures", "report/provenance")
PROMPTED = expand(f"{WORK}/predictions/ResDM/{{condition}}/scores.csv", condition=["factual", *CONDITIONS])

rule figure4:
    input:
        rules.evaluators.output,
        PROMPTED,
        notebook="notebooks/07_figure4_gender.ipynb",
        modules=CONDITIONED,
    output:
        multiext(f"{FIGURES}/figure4", ".svg", ".png", ".csv"),
        f"{FIGURES}/figure4_effects.csv",
    log:
        notebook=f"{WORK}/notebooks/07_figure4_gender.ipynb",
    shell:
        PAPERMILL


rule figure5:
    input:
        rules.evaluators.output,
        PROMPTED,
        notebook="notebooks/08_figure5_age.ipynb",
        modules=CONDITIONED,
    output:
        multiext(f"{FIGURES}/figure5", ".svg", ".png", ".csv"),
        f"{FIGURES}/figure5_effects.csv",
    log:
        notebook=f"{WORK}/notebooks/08_figure5_age.ipynb",
    params:
        digest("privacy"),
    shell:
        PAPERMILL


rule table3:
    input:
        expand(f"{WORK}/predictions/{{method}}/factual/scores.csv", method=VARIANTS),
        f"{WORK}/evaluation/status.csv",
        "data_manifests/paper/table3.csv",
        notebook="notebooks/05_table3_ablation.ipynb",
        modules=TABLES + package("report/ablation", "report/cases", "report/figures", "report/provenance"),
    output:
        multiext(f"{FIGURES}/table3", ".csv", ".md", ".tex"),
        multiext(f"{FIGURES}/figure3", ".svg", ".png"),
    log:
        notebook=f"{WORK}/notebooks/05_table3_ablation.ipynb",
    params:
        digest("privacy"),
    shell:
        PAPERMILL


rule planted:
    input:
        CEILING,
        expand(
            f"{WORK}/predictions/{{method}}/factual/scores.csv",
            method=[name for name in METHODS if name.partition("@")[0] in ("ResDM", "linear")],
        ),
        notebook="notebooks/11_planted_effects.ipynb",
        modules=TABLES
        + package("cohort/phantom", "cohort/planted", "evaluation/suvr", "evaluation/planted", "report/planted")
        + package("report/ablation", "report/figures", "report/provenance"),
    output:
        multiext(f"{FIGURES}/planted", ".csv", ".md", ".tex", ".svg", ".png"),
    log:
        notebook=f"{WORK}/notebooks/11_planted_effects.ipynb",
    shell:
        PAPERMILL


rule fidelity:
    input:
        CEILING,
        expand(f"{WORK}/predictions/{{method}}/factual/scores.csv", method=COMPARED),
        notebook="notebooks/13_suvr_fidelity.ipynb",
        modules=TABLES
        + package("evaluation/suvr", "evaluation/agreement", "evaluation/atlas", "evaluation/fidelity")
        + package("report/fidelity", "report/figures", "report/provenance"),
    output:
        multiext(f"{FIGURES}/suvr_fidelity", ".csv", ".md", ".tex", ".svg", ".png"),
    params:
        digest("fidelity", "privacy"),
    log:
        notebook=f"{WORK}/notebooks/13_suvr_fidelity.ipynb",
    shell:
        PAPERMILL


rule counterfactuals:
    input:
        PROMPTED,
        notebook="notebooks/15_counterfactuals.ipynb",
        modules=package("config", "anatomy", "io", "evaluation/suvr", "evaluation/statistics")
        + package("evaluation/image_quality", "evaluation/counterfactuals")
        + package("report/counterfactuals", "report/figures", "report/provenance"),
    output:
        multiext(f"{FIGURES}/counterfactuals", ".svg", ".png", ".csv"),
    log:
        notebook=f"{WORK}/notebooks/15_counterfactuals.ipynb",
    shell:
        PAPERMILL


# Samples and their judgement in one job: it costs its imports, and the samples are read once.
rule uncertainty:
    input:
        f"{WORK}/models/{SETTINGS.uncertainty.method}/model.safetensors",
        notebook="notebooks/14_uncertainty.ipynb",
        modules=SYNTHESIS
        + package("evaluation/suvr", "evaluation/uncertainty", "report/tables", "report/uncertainty")
        + package("report/figures", "report/provenance"),
    output:
        multiext(f"{FIGURES}/uncertainty", ".csv", ".md", ".tex", ".svg", ".png"),
        f"{WORK}/predictions/{SETTINGS.uncertainty.method}/samples/regional.csv",
    log:
        notebook=f"{WORK}/notebooks/14_uncertainty.ipynb",
    params:
        digest("uncertainty", "privacy"),
    priority: 1
    threads: SETTINGS.training.threads or workflow.cores
    shell:
        PAPERMILL


rule claims:
    input:
        LEDGER,
        expand("data_manifests/paper/{name}.csv", name=["table1", "table2", "table3", "table4", "claims"]),
        notebook="notebooks/10_claims.ipynb",
        modules=TABLES + package("report/ablation", "report/claims", "report/printed", "report/provenance"),
    output:
        multiext(f"{FIGURES}/claims", ".csv", ".md", ".tex"),
    params:
        digest("cohort", "preprocess", "methods"),
    log:
        notebook=f"{WORK}/notebooks/10_claims.ipynb",
    shell:
        PAPERMILL


rule departures:
    input:
        expand(f"{WORK}/predictions/{{method}}/factual/scores.csv", method=RELEASED),
        notebook="notebooks/12_released_code.ipynb",
        modules=TABLES + package("report/ablation", "report/provenance"),
    output:
        multiext(f"{FIGURES}/departures", ".csv", ".md", ".tex"),
    log:
        notebook=f"{WORK}/notebooks/12_released_code.ipynb",
    shell:
        PAPERMILL


# Last: pages of all that is there. After a failed run, `resdm report` makes them of what there is.
rule report:
    input:
        [f"{FIGURES}/{name}" for name in RESULTS],
        package("config", "report/site", "report/provenance"),
        expand("resdm/report/templates/{name}", name=["index.html.j2", "notebook.html.j2", "notebook.css"]),
    output:
        f"{WORK}/report/index.html",
    shell:
        "resdm report {PROFILE}"
