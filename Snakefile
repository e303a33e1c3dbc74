# The workflow. Each rule runs one notebook by papermill, or one `resdm` command that a user can type:
#
#   snakemake --cores all --config profile=phantom
#
# Stages exchange files below work/<profile>/. A rule's code inputs come from the import graph
# (resdm_suite/apps/dependencies.py): a changed figure module redraws figures and trains nothing. Of a notebook, its code
# cells count, so saving one in JupyterLab reruns nothing. Executed notebooks stand under `log:`, so a failed run keeps
# them. Training states and volumes of single participants are not declared: an interrupted run continues from them.
#
# `snakemake --lint` reports the missing `conda:` of each rule, since `make env` builds one environment for all, and
# `envvars` for the two lines that set os.environ. It has no other findings.
import json
import os
import sys

from resdm.settings import METHODS as METHOD_CLASSES
from resdm.settings import ConfigError
from resdm_suite.apps.dependencies import code_digest, modules
from resdm_suite.cohorts.assembly import READERS
from resdm_suite.profiles import check_name, load_config

PROFILE = config.get("profile", "phantom")  # Snakemake reads 0012 as a number
check_name(PROFILE, "--config profile")
SETTINGS = load_config(f"configs/{PROFILE}.yaml")
WORK, FIGURES = f"work/{PROFILE}", f"figures/{PROFILE}"
TEMPLATES = "resdm_suite/reporting/templates"
METHODS = list(SETTINGS.methods)
ABLATION = "Base +L_high +prior ResDM as_published per_tracer".split()  # Table 3
VARIANTS = [name for name in METHODS if name.partition("@")[0] in ABLATION]
COMPARED = [name for name in METHODS if name.partition("@")[0] == "ResDM" or name not in VARIANTS]  # Table 2
if SETTINGS.purpose == "paper" and "ResDM" not in METHODS:
    raise ConfigError(f"configs/{PROFILE}.yaml: the notebooks compare with ResDM, which methods lacks; add it, or run single stages")
FAULTS = [name for name in METHODS if SETTINGS.method(name).kind in ("released", "linear")]  # notebook 12
SAMPLED = [name for name in METHODS if name.partition("@")[0] == SETTINGS.uncertainty.method]
PHANTOM = SETTINGS.cohort.kind == "phantom"
CONDITIONS = SETTINGS.conditions
SCORES = f"{WORK}/predictions/{{method}}/factual/scores.csv"
CEILING = [f"{WORK}/predictions/ceiling/factual/scores.csv"] * PHANTOM
CEILING_OF_ATTRIBUTES = expand(f"{WORK}/predictions/ceiling/{{condition}}/scores.csv", condition=SETTINGS.ceiling_conditions)
PROMPTED = expand(f"{WORK}/predictions/ResDM/{{condition}}/scores.csv", condition=["factual", *CONDITIONS])
TRAINING_THREADS = SETTINGS.training.threads or workflow.cores

# Programs and the kernel are those of this interpreter's environment, whatever else is installed. The kernel's
# specification names no interpreter, so papermill's own is taken; "python3" may be that of another environment.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
os.environ["JUPYTER_PATH"] = os.path.join(workflow.basedir, "configs", "jupyter")

PAPERMILL = "papermill {params.notebook} {log.notebook} --cwd . --no-progress-bar -k resdm -r config {params.profile}"
LOGGED = "2>&1 | tee {log}"
DOCUMENTS = ("resdm_suite.reporting", "resdm_suite.apps.model_card")  # what draws and describes: it remakes no volume, no model


def notebook(name, *settings, **others):
    """Parameters of a notebook's rule; other values of them run the rule again."""
    path = f"notebooks/{name}.ipynb"
    digest = SETTINGS.digest(*settings) if settings else ""
    return dict(profile=PROFILE, notebook=path, cells=code_digest(path), settings=digest) | others


def method_modules(method, *stage):
    """Modules of one method, and of a stage that runs it: a changed baseline concerns that baseline only."""
    kind = SETTINGS.method(method).kind
    figure1 = () if ":" in kind or kind == "residual_diffusion" else ("resdm_suite.apps.trace",)
    own = METHOD_CLASSES.get(kind, kind).partition(":")[0]
    return modules(*stage, without=DOCUMENTS + figure1) + modules(own, without=DOCUMENTS)


RESULTS = ["table1.csv", "table2.csv", "figure1.png", "table4.csv", "atn.csv", "subgroups.csv"]
RESULTS += ["suvr_fidelity.csv", "longitudinal.csv"]
RESULTS += ["table3.csv"] * ("Base" in METHODS) + ["planted.csv"] * PHANTOM
RESULTS += ["figure4.png"] * ({"no_sex", "wrong_sex"} <= set(CONDITIONS))
RESULTS += ["figure5.png"] * ({"no_age", "shuffled_age"} <= set(CONDITIONS))
UNCHECKED = ("figure1.png", "suvr_fidelity.csv", "subgroups.csv", "longitudinal.csv")  # no claim is about them
CHECKED = [f"{FIGURES}/{name.replace('.png', '.csv')}" for name in RESULTS if name not in UNCHECKED]
RESULTS += ["counterfactuals.png"] * ({"wrong_sex", "tracer_only", "shuffled"} <= set(CONDITIONS))
RESULTS += ["uncertainty.csv", "input_check.csv"] * (SETTINGS.uncertainty.method in METHODS) + ["claims.csv", "qc.png"]
RESULTS += ["walkthrough.png", "evaluation.csv"] * ("ResDM" in METHODS)
RESULTS += ["attributes.csv"] * bool(SETTINGS.attributes)
if not SETTINGS.preprocess.in_suvr:  # each volume is scaled to its own range: what measures SUVR is left out
    RESULTS = [name for name in RESULTS if name.startswith(("table", "figure", "atn", "claims", "qc", "walkthrough"))]
    CHECKED = [name for name in CHECKED if "planted" not in name]
if SETTINGS.purpose != "paper":
    RESULTS = ["table1.csv", {"released": "released_code.csv", "attributes": "attributes.csv"}[SETTINGS.purpose]]


wildcard_constraints:
    method="(?!ceiling/)[^/]+",  # the ceiling has a rule of its own


rule all:
    input:
        [f"{FIGURES}/{name}" for name in RESULTS],
        f"{WORK}/report/index.html",


# ── from scans to volumes ─────────────────────────────────────────────────────────────────────────

if PHANTOM:

    rule phantom:
        input:
            modules("resdm_suite.cohorts.phantom"),
        output:
            f"{WORK}/bids/participants.tsv",
        log:
            f"{WORK}/logs/phantom.txt",
        params:
            profile=PROFILE,
            settings=SETTINGS.digest("cohort.phantom", "seed"),
        threads: workflow.cores
        shell:
            f"resdm phantom {{params.profile}} --jobs {{threads}} {LOGGED}"


# Scans of real people are no input: they may be terabytes on another disk.
rule manifest:
    input:
        f"{WORK}/bids/participants.tsv" if PHANTOM else [],
        modules("resdm_suite.cohorts.assembly", READERS[SETTINGS.cohort.source]),
    output:
        f"{WORK}/manifest.csv",
    log:
        f"{WORK}/logs/manifest.txt",
    params:
        profile=PROFILE,
        source=SETTINGS.cohort.source,
        settings=SETTINGS.digest("cohort", "seed") + " ".join(SETTINGS.attributes),
    shell:
        f"resdm manifest {{params.source}} {{params.profile}} {LOGGED}"


rule preprocess:
    input:
        f"{WORK}/manifest.csv",
        modules("notebooks/01_preprocess.ipynb", without=DOCUMENTS),
    output:
        f"{WORK}/volumes/index.csv",
        f"{WORK}/volumes/cohort.npy",
    log:
        notebook=f"{WORK}/notebooks/01_preprocess.ipynb",
    params:
        **notebook("01_preprocess", "cohort", "preprocess"),
        attributes=" ".join(SETTINGS.attributes),
    threads: workflow.cores
    shell:
        PAPERMILL


# Apart from notebook 01, which draws the same: a changed figure must not remake the volumes.
rule qc:
    input:
        f"{WORK}/volumes/index.csv",
        modules("resdm_suite.reporting.qc"),
        expand(f"{TEMPLATES}/{{name}}", name=["qc.html.j2", "page.css"]),
    output:
        f"{WORK}/qc/qc.csv",
        f"{WORK}/qc/index.html",
        multiext(f"{FIGURES}/qc", ".svg", ".png"),
    log:
        f"{WORK}/logs/qc.txt",
    params:
        profile=PROFILE,
        settings=SETTINGS.digest("privacy"),
    threads: workflow.cores
    shell:
        f"resdm qc {{params.profile}} --jobs {{threads}} {LOGGED}"


# ── training and synthesis ────────────────────────────────────────────────────────────────────────


rule train:
    input:
        rules.preprocess.output,
        lambda wildcards: method_modules(wildcards.method, "notebooks/02_train.ipynb"),
    output:
        f"{WORK}/models/{{method}}/model.safetensors",
        f"{WORK}/models/{{method}}/history.csv",
    log:
        notebook=f"{WORK}/notebooks/02_train_{{method}}.ipynb",
    params:
        **notebook("02_train", settings=lambda wildcards: SETTINGS.digest(f"methods.{wildcards.method}", "training", "seed")),
    priority: 1  # long jobs first, so that the short ones fill the gaps
    threads: TRAINING_THREADS
    shell:
        f"{PAPERMILL} -r method {{wildcards.method}}"


rule synthesise:
    input:
        f"{WORK}/models/{{method}}/model.safetensors",
        lambda wildcards: method_modules(wildcards.method, "notebooks/03_synthesise.ipynb"),
    output:
        SCORES,
    log:
        notebook=f"{WORK}/notebooks/03_synthesise_{{method}}.ipynb",
    params:
        **notebook("03_synthesise", "privacy"),
    threads: TRAINING_THREADS
    shell:
        f"{PAPERMILL} -r method {{wildcards.method}}"


# All conditions in one job, since each job starts Python and loads the model.
rule conditions:
    input:
        f"{WORK}/models/ResDM/model.safetensors",
        method_modules("ResDM", "notebooks/03_synthesise.ipynb") if "ResDM" in METHODS else [],
    output:
        PROMPTED[1:],
    log:
        notebook=f"{WORK}/notebooks/03_synthesise_conditions.ipynb",
    params:
        **notebook("03_synthesise", conditions=json.dumps(CONDITIONS)),
    priority: 1
    threads: TRAINING_THREADS
    shell:
        f"{PAPERMILL} -r method ResDM -y 'conditions: {{params.conditions}}'"


# Those of notebook 22: each further attribute of a method shuffled or wrong.
ATTRIBUTE_CONDITIONS = {name: [one for one in SETTINGS.attribute_conditions(name) if (name, one) not in {("ResDM", c) for c in CONDITIONS}] for name in METHODS}
for number, (method, conditions) in enumerate((name, some) for name, some in ATTRIBUTE_CONDITIONS.items() if some):

    rule:
        name:
            f"attributes_of_{number}"
        input:
            f"{WORK}/models/{method}/model.safetensors",
            method_modules(method, "notebooks/03_synthesise.ipynb"),
        output:
            expand(f"{WORK}/predictions/{method}/{{condition}}/scores.csv", condition=conditions),
        log:
            notebook=f"{WORK}/notebooks/03_synthesise_{method}_attributes.ipynb",
        params:
            **notebook("03_synthesise", conditions=json.dumps(conditions), method=method),
        threads: TRAINING_THREADS
        shell:
            f"{PAPERMILL} -r method {{params.method}} -y 'conditions: {{params.conditions}}'"


if PHANTOM:

    rule ceiling:
        input:
            f"{WORK}/volumes/index.csv",
            modules("resdm_suite.apps.ceiling", without=DOCUMENTS),
        output:
            CEILING,
            f"{WORK}/predictions/ceiling/factual/latent.csv",
            CEILING_OF_ATTRIBUTES,
        log:
            f"{WORK}/logs/ceiling.txt",
        params:
            profile=PROFILE,
            settings=SETTINGS.digest("cohort", "preprocess", "seed"),
            conditions=" ".join(SETTINGS.ceiling_conditions),
        shell:
            f"resdm ceiling {{params.profile}} {LOGGED}"


# Evaluators need real PET only, so they are fitted beside the trainings. Fitted files are not declared: a second run
# takes those that exist.
rule evaluators:
    input:
        rules.preprocess.output,
        modules("resdm_suite.evaluation.downstream"),
    output:
        touch(f"{WORK}/evaluation/fitted"),
    log:
        f"{WORK}/logs/evaluators.txt",
    params:
        profile=PROFILE,
        settings=SETTINGS.digest("evaluation", "preprocess", "seed"),
    priority: 1
    threads: TRAINING_THREADS
    shell:
        f"resdm evaluators {{params.profile}} {LOGGED}"


# ── tables and figures ────────────────────────────────────────────────────────────────────────────


def paper(*names):
    return expand("data_manifests/paper/{name}.csv", name=names)


def templates(results):
    """Templates of results: the LaTeX of tables, and the notes below those that have some."""
    paths = expand(f"{TEMPLATES}/notes_{{table}}.md", table=results)
    paths += [f"{TEMPLATES}/table.tex.j2"] * any(".tex" in suffixes for suffixes in results.values())
    return [path for path in paths if os.path.isfile(path)]


def scores(methods):
    return [*CEILING, *expand(SCORES, method=methods)]


FITTED = rules.evaluators.output
SCORED = expand(SCORES, method=METHODS)  # the evaluators read every method that is done, so all must be
RECOVERED = [name for name in METHODS if name.partition("@")[0] in ("ResDM", "linear")]
TABLE, FIGURE = (".csv", ".md", ".tex"), (".svg", ".png")
ANALYSES = {  # rule: notebook; its inputs; its results below figures/; the settings that it reads
    "cohort": ("00_cohort", [rules.preprocess.output[0], *paper("table1")], {"table1": TABLE}, ["privacy"]),
    "figure1": ("09_figure1_method", PROMPTED[:1], {"figure1": FIGURE}, ["privacy"]),
    "table2": ("04_table2_comparison", scores(COMPARED) + paper("table2"), {"table2": TABLE, "figure2": FIGURE}, ["privacy"]),
    "table3": (
        "05_table3_ablation",
        [*expand(SCORES, method=VARIANTS), f"{WORK}/evaluation/status.csv", *paper("table3")],
        {"table3": TABLE, "figure3": FIGURE},
        ["privacy"],
    ),
    "table4": (
        "06_table4_diagnosis",
        [*FITTED, *scores(METHODS), *paper("table4")],
        {"table4": TABLE, "table4_roc": FIGURE, "table4_calibration": [".csv"]},
        [],
    ),
    "atn": (
        "19_atn",
        [f"{WORK}/volumes/index.csv", f"{WORK}/evaluation/status.csv"],
        {"atn": TABLE + FIGURE, "atn_confusion": [".csv"], "atn_decision": [".csv"]},
        [],
    ),
    "figure4": ("07_figure4_gender", [*FITTED, *PROMPTED, *SCORED], {"figure4": [*FIGURE, ".csv"], "figure4_effects": [".csv"]}, []),
    "figure5": ("08_figure5_age", [*FITTED, *PROMPTED, *SCORED], {"figure5": [*FIGURE, ".csv"], "figure5_effects": [".csv"]}, ["privacy"]),
    "planted": ("11_planted_effects", scores(RECOVERED), {"planted": TABLE + FIGURE}, []),
    "fidelity": ("13_suvr_fidelity", scores(COMPARED), {"suvr_fidelity": TABLE + FIGURE}, ["fidelity", "privacy"]),
    "longitudinal": ("23_longitudinal", scores(COMPARED), {"longitudinal": TABLE + FIGURE}, ["privacy"]),
    "subgroups": (  # after the audit, since both write the model card
        "20_subgroups",
        [
            *expand(SCORES, method=RECOVERED),
            f"{WORK}/evaluation/status.csv",
            *[f"{WORK}/models/{name}/memorisation.json" for name in [SETTINGS.uncertainty.method] if name in METHODS],
        ],
        {"subgroups": TABLE + FIGURE},
        [],
    ),
    "counterfactuals": ("15_counterfactuals", PROMPTED, {"counterfactuals": [*FIGURE, ".csv"]}, []),
    "walkthrough": (
        "16_method_walkthrough",
        [f"{WORK}/volumes/index.csv", f"{WORK}/models/ResDM/model.safetensors"],
        {"walkthrough": FIGURE},
        ["privacy"],
    ),
    "evaluation": (
        "17_evaluate",
        expand(SCORES, method=[name for name in ("ResDM", "linear") if name in METHODS]),
        {"evaluation": TABLE + FIGURE, "evaluation_metrics": [".json"]},
        ["privacy"],
    ),
    "trust": (
        "21_trust",
        [
            *(f"{WORK}/models/{SETTINGS.uncertainty.method}/{name}.json" for name in ("calibration", "memorisation")),
            f"{WORK}/predictions/{SETTINGS.uncertainty.method}/samples/regional.csv",
        ],
        {name: TABLE + FIGURE for name in ("input_check", "intervals", "memorisation")},
        ["privacy"],
    ),
    "stress": (  # by `make stress`
        "18_stress",
        [f"{WORK}/models/{name}/model.safetensors" for name in ("ResDM", "regression", "linear", "demographics") if name in METHODS],
        {"stress": [".csv", *FIGURE]},
        [],
    ),
    "claims": (
        "10_claims",
        CHECKED + paper("table1", "table2", "table3", "table4", "claims"),
        {"claims": TABLE},
        ["cohort", "preprocess", "methods"],
    ),
    "attributes": (
        "22_attributes",
        [
            *scores(METHODS),
            *CEILING_OF_ATTRIBUTES,
            *[f"{WORK}/predictions/{method}/{one}/scores.csv" for method in METHODS for one in SETTINGS.attribute_conditions(method)],
        ],
        {"attributes": TABLE + FIGURE},
        [],
    ),
    "released_code": ("12_released_code", expand(SCORES, method=FAULTS), {"released_code": TABLE}, []),
}

for name, (stem, sources, results, settings) in ANALYSES.items():

    rule:
        name:
            name
        input:
            sources,
            modules(f"notebooks/{stem}.ipynb"),
            templates(results),
        output:
            [f"{FIGURES}/{result}{suffix}" for result, suffixes in results.items() for suffix in suffixes],
            [f"{WORK}/evaluation/status.csv"] * (name == "table4"),
        log:
            notebook=f"{WORK}/notebooks/{stem}.ipynb",
        params:
            **notebook(stem, *settings),
        shell:
            PAPERMILL


if SETTINGS.uncertainty.method in METHODS:

    # Samples and their evaluation in one job: the samples are read once.
    rule uncertainty:
        input:
            expand(f"{WORK}/models/{{method}}/model.safetensors", method=SAMPLED),
            method_modules(SETTINGS.uncertainty.method),
            modules("notebooks/14_uncertainty.ipynb"),
            templates({"uncertainty": TABLE}),
        output:
            multiext(f"{FIGURES}/uncertainty", ".csv", ".md", ".tex", ".svg", ".png"),
            f"{WORK}/predictions/{SETTINGS.uncertainty.method}/samples/regional.csv",
            f"{WORK}/models/{SETTINGS.uncertainty.method}/calibration.json",
        log:
            notebook=f"{WORK}/notebooks/14_uncertainty.ipynb",
        params:
            **notebook("14_uncertainty", "uncertainty", "privacy"),
        priority: 1
        threads: TRAINING_THREADS
        shell:
            PAPERMILL

    # After the scores, since both write the model card.
    rule audit:
        input:
            SCORES.format(method=SETTINGS.uncertainty.method),
            modules("resdm_suite.apps.memorisation", without=DOCUMENTS),
        output:
            f"{WORK}/models/{SETTINGS.uncertainty.method}/memorisation.json",
        log:
            f"{WORK}/logs/audit.txt",
        params:
            profile=PROFILE,
            method=SETTINGS.uncertainty.method,
        threads: TRAINING_THREADS
        shell:
            f"resdm audit {{params.profile}} {{params.method}} {LOGGED}"


# Last: pages of all results. After a failed run, `resdm report` makes them from what exists.
rule report:
    input:
        [f"{FIGURES}/{name}" for name in RESULTS],
        modules("resdm_suite.reporting.site"),
        expand(f"{TEMPLATES}/{{name}}", name=["index.html.j2", "page.css", "notebook.html.j2", "notebook.css"]),
    output:
        f"{WORK}/report/index.html",
    log:
        f"{WORK}/logs/report.txt",
    params:
        profile=PROFILE,
    shell:
        f"resdm report {{params.profile}} {LOGGED}"
