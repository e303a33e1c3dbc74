# The DAG: every rule is one call of a notebook by papermill, or of the command that a user would type.
#
#   snakemake --cores all --config profile=phantom
#
# Stages meet on disk below work/<profile>/. Python imports are not tracked, so each rule lists the modules it depends
# on: a changed figure module redraws figures and trains nothing. Executed notebooks stand under `log:`, so a failed run
# keeps them; state.pt and the volumes of single people are not declared, so a killed run goes on from them.
import importlib.util
import json

from resdm_suite.profiles import load_config

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
    return [f"{name}.py" for name in names]


def method_modules(wildcards):
    """The files of one method: a changed baseline trains that baseline only."""
    kind = SETTINGS.method(wildcards.method).kind
    if ":" in kind:  # module:Class, from outside
        return [*package("resdm/method"), importlib.util.find_spec(kind.partition(":")[0]).origin]
    paper = ["resdm/scheduler", "resdm/prior", "resdm/layers/clip", "resdm/pretraining", "resdm/layers/paths", "resdm/unet", "resdm/layers/wavelet", "resdm/layers/checkpointing", "resdm/layers/upsampling", "resdm/losses"]
    paper += ["resdm/residual_diffusion", "resdm/residual_diffusion"]
    own = {"residual_diffusion": paper, "regression": [*paper, "resdm/baselines/regression"], "demographics": ["resdm/baselines/linear"]}.get(kind, [f"resdm/baselines/{kind}"])
    if kind == "released":
        own += ["resdm/scheduler", "resdm/prior", "resdm/layers/clip", "resdm/pretraining", "resdm/unet", "resdm/layers/wavelet", "resdm/layers/checkpointing", "resdm/layers/upsampling", "resdm/losses"]
    return package("resdm/method", *own, *(["resdm/baselines/adversarial"] if kind in BASELINES else []))


PHANTOM = [f"resdm_suite/cohorts/phantom/{name}" for name in ("__init__", "anatomy", "dataset", "people", "scanner", "truth", "uptake")]
DATA = package("resdm_suite/profiles", "resdm_suite/anatomy", "resdm/io", "resdm_suite/cohorts/leakage", "resdm_suite/cohorts/manifest", "resdm_suite/preprocessing/dataset")
PAPERMILL = "papermill {input.notebook} {log.notebook} --cwd . --no-progress-bar -k python3 -p config {PROFILE}"
TABLES = package("resdm_suite/profiles", "resdm_suite/anatomy", "resdm/io", "resdm_suite/cohorts/leakage", "resdm_suite/evaluation/image_quality", "resdm_suite/evaluation/statistics", "resdm_suite/reporting/tables")


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
            package(*PHANTOM, "resdm_suite/anatomy"),
        output:
            f"{WORK}/bids/participants.tsv",
        params:
            digest("cohort.phantom", "seed"),
        threads: workflow.cores
        shell:
            "resdm phantom {PROFILE} --jobs {threads}"


READER = {"csv": "table", "released": "released_layout"}.get(SETTINGS.cohort.source, SETTINGS.cohort.source)
READERS = ["resdm_suite/cohorts/matching", "resdm_suite/cohorts/manifest"] + [f"resdm_suite/cohorts/readers/{name}" for name in {"bids", READER}]



# A source of real people is no input: it may be terabytes, and lie on another disk.
rule manifest:
    input:
        f"{WORK}/bids/participants.tsv" if SETTINGS.cohort.kind == "phantom" else [],
        package(*READERS),
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
        modules=DATA + package("resdm_suite/preprocessing/registration", "resdm_suite/preprocessing/volumes"),
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
        modules=package("resdm_suite/profiles", "resdm_suite/anatomy", "resdm/io", "resdm_suite/preprocessing/qc", "resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance", "resdm_suite/reporting/qc"),
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
        modules=TABLES + package("resdm_suite/preprocessing/volumes", "resdm_suite/reporting/provenance"),
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
        modules=DATA + package("resdm/batch", "resdm/checkpoint", "resdm/training"),
    output:
        f"{WORK}/models/{{method}}/model.safetensors",
        f"{WORK}/models/{{method}}/history.csv",
    log:
        notebook=f"{WORK}/notebooks/02_train_{{method}}.ipynb",
    params:
        lambda wildcards: digest(f"methods.{wildcards.method}", "resdm/training", "seed"),
    priority: 1  # the long jobs first: the short ones behind them then end together
    threads: SETTINGS.training.threads or workflow.cores
    shell:
        PAPERMILL + " -p method {wildcards.method}"


SYNTHESIS = DATA + package("resdm/batch", "resdm/checkpoint", "resdm_suite/apps/prediction", "resdm_suite/evaluation/image_quality")
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
            + package(*PHANTOM, "resdm_suite/preprocessing/registration", "resdm_suite/preprocessing/volumes", "resdm_suite/preprocessing/ceiling", "resdm_suite/evaluation/image_quality"),
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
        modules=TABLES + package("resdm_suite/evaluation/suvr", "resdm_suite/reporting/cases", "resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance"),
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
        modules=package("resdm_suite/profiles", "resdm_suite/anatomy", "resdm/io", "resdm_suite/reporting/cases", "resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance"),
    output:
        multiext(f"{FIGURES}/figure1", ".svg", ".png"),
    log:
        notebook=f"{WORK}/notebooks/09_figure1_method.ipynb",
    params:
        digest("privacy"),
    shell:
        PAPERMILL


# ── what evaluators fitted on real PET see ────────────────────────────────────────────────────────

READINGS = package(*(f"resdm_suite/evaluation/{name}" for name in ("readings", "status", "conditioning", "classification", "statistics")))
EVALUATORS = READINGS + package("resdm_suite/profiles", "resdm_suite/anatomy", "resdm/io", "resdm_suite/cohorts/leakage", "resdm_suite/evaluation/image_quality", "resdm_suite/evaluation/suvr")
EVALUATORS += package("resdm_suite/evaluation/planted", "resdm_suite/evaluation/networks", "resdm_suite/evaluation/fitting", "resdm_suite/evaluation/downstream")


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
        modules=EVALUATORS + package("resdm_suite/reporting/tables", "resdm_suite/reporting/diagnosis", "resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance"),
    output:
        multiext(f"{FIGURES}/table4", ".csv", ".md", ".tex"),
        multiext(f"{FIGURES}/table4_roc", ".svg", ".png"),
        f"{FIGURES}/table4_calibration.csv",
        f"{WORK}/evaluation/status.csv",
    log:
        notebook=f"{WORK}/notebooks/06_table4_diagnosis.ipynb",
    shell:
        PAPERMILL


CONDITIONED = EVALUATORS + package("resdm_suite/reporting/conditioning", "resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance")
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
        modules=TABLES + package("resdm_suite/reporting/ablation", "resdm_suite/reporting/cases", "resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance"),
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
        + package(*PHANTOM, "resdm_suite/evaluation/suvr", "resdm_suite/evaluation/planted", "resdm_suite/reporting/planted")
        + package("resdm_suite/reporting/ablation", "resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance"),
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
        + package("resdm_suite/evaluation/suvr", "resdm_suite/evaluation/agreement", "resdm_suite/evaluation/atlas", "resdm_suite/evaluation/fidelity")
        + package("resdm_suite/reporting/fidelity", "resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance"),
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
        modules=package("resdm_suite/profiles", "resdm_suite/anatomy", "resdm/io", "resdm_suite/evaluation/suvr", "resdm_suite/evaluation/statistics")
        + package("resdm_suite/evaluation/image_quality", "resdm_suite/evaluation/counterfactuals")
        + package("resdm_suite/reporting/counterfactuals", "resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance"),
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
        + package("resdm_suite/evaluation/suvr", "resdm_suite/evaluation/uncertainty", "resdm_suite/reporting/tables", "resdm_suite/reporting/uncertainty")
        + package("resdm_suite/reporting/figures", "resdm_suite/reporting/slices", "resdm_suite/reporting/style", "resdm_suite/reporting/provenance"),
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
        modules=TABLES + package("resdm_suite/reporting/ablation", "resdm_suite/reporting/claims", "resdm_suite/reporting/printed", "resdm_suite/reporting/provenance"),
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
        modules=TABLES + package("resdm_suite/reporting/ablation", "resdm_suite/reporting/provenance"),
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
        package("resdm_suite/profiles", "resdm_suite/reporting/site", "resdm_suite/reporting/provenance"),
        expand("resdm_suite/reporting/templates/{name}", name=["index.html.j2", "notebook.html.j2", "notebook.css"]),
    output:
        f"{WORK}/report/index.html",
    shell:
        "resdm report {PROFILE}"
