"""The command line: ``resdm COMMAND``.

Each command imports the packages that it needs: ``resdm --help`` and ``resdm check`` answer at once, where open_clip,
nilearn and SimpleITK together take seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import shtab

from resdm import __version__
from resdm.settings import ConfigError, suggest
from resdm_suite import records
from resdm_suite.profiles import SOURCES, Config, load_config

if TYPE_CHECKING:
    from resdm_suite.cohorts.matching import Cohort

BAD_INPUT, UNEXPECTED, INTERRUPTED, CLOSED_PIPE = 2, 1, 130, 141
"""Exit codes other than 0; argparse uses 2 for the same, a shell 130 and 141 for the signals."""

COMMANDS: dict[str, tuple[str, str, str | Callable[..., Any], tuple]] = {}
"""Name → help, example, what to run, arguments. What runs is a function, or the place of one to import on use."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    int
        0: done; 2: bad input, with one line on standard error; 1: an unexpected error, with its traceback.
    """
    with suppress(AttributeError):  # a replaced or closed stream
        sys.stdout.reconfigure(errors="replace")
    try:
        options = vars(_parser().parse_args(arguments))
    except SystemExit:
        _flush()
        raise
    code = _run(options)
    closed = _flush()
    if closed == BAD_INPUT and not code:
        print("resdm: standard output cannot be written: is the disk full?", file=sys.stderr)
    return code or closed


def _flush() -> int:
    """Write what is printed, and discard what cannot be written: Python would report an error at exit."""
    try:
        print(end="", flush=True)
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE if isinstance(error, BrokenPipeError) else BAD_INPUT
    return 0


def _run(options: dict[str, Any]) -> int:
    command, run = options.pop("command"), options.pop("run")
    command += f" {options.pop('action')}" if "action" in options else ""
    try:
        if "profile" in options:
            options["config"] = load_config(options.pop("profile"))
        if isinstance(run, str):
            module, _, name = run.partition(":")
            run = getattr(importlib.import_module(f"resdm_suite.{module}"), name)
        result = run(**options)
        if result is not None:
            print(result)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `resdm check | head -1`
        return CLOSED_PIPE
    except Exception as error:
        if _is_deliberate(error):
            print(f"resdm {command}: {_text(error)}", file=sys.stderr)
            return BAD_INPUT
        traceback.print_exc()
        return UNEXPECTED
    return 0


def _is_deliberate(error: Exception) -> bool:
    """Whether this package raised an error on purpose, about its input."""
    if type(error).__module__.startswith("resdm") or isinstance(error, OSError | MemoryError):
        return True
    if not isinstance(error, ValueError):
        return False
    # A ValueError of Python or of a library is a fault of this package: its text does not help to correct the input.
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return frame.f_globals.get("__name__", "").startswith("resdm") and line.startswith("raise")


def _text(error: Exception) -> str:
    """The error, with a remedy where the system raised it."""
    if isinstance(error, OSError) and error.errno and error.filename:
        return f"{error.filename}: {error.strerror}; correct this and run the same command again: finished files stay"
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); use a smaller grid or fewer --jobs"
    return str(error)


class _Parser(argparse.ArgumentParser):
    """A parser that names the nearest choice, as argparse does from Python 3.14 on."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.+)' \(choose from (.+)\)", message)
        super().error(message + (suggest(wrong[1], re.findall(r"[\w-]+", wrong[2])) if wrong else ""))


EXAMPLES = """Examples:
  resdm phantom smoke                     generate a small simulated cohort
  resdm check phantom                     list a profile's settings and files
  resdm train phantom ResDM               train a method
  resdm synthesise T1w.nii.gz --age 74 --sex F --model work/phantom/models/ResDM --allow-phantom-model --out out
  resdm completion bash                   print a script that completes commands and options"""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="resdm", description="Synthesise amyloid and tau PET from MRI: the suite of Ou et al., IJCAI 2024.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=__version__)
    commands, actions = parser.add_subparsers(dest="command", required=True, metavar="command"), None
    for name, (text, example, run, arguments) in COMMANDS.items():
        shown = f"resdm {name} {example}"
        if name.startswith("model ") and actions is None:
            models = commands.add_parser("model", help="show, push or pull a model folder", epilog=f"Example: {shown}")
            actions = models.add_subparsers(dest="action", required=True, metavar="action")
        group = actions if name.startswith("model ") else commands
        long = f"{text[0].upper()}{text[1:]}."
        sub = group.add_parser(name.removeprefix("model "), help=text, description=long, epilog=f"Example: {shown}")
        for flags, options in arguments:
            action = sub.add_argument(*flags, **options)
            if options.get("type") is Path:
                is_folder = "folder" in f"{action.metavar or action.dest}".lower()
                action.complete = shtab.DIRECTORY if is_folder else shtab.FILE
        sub.set_defaults(run=run)
    return parser


def _command(name: str, text: str, example: str, run: str | Callable[..., Any], *arguments: tuple) -> None:
    COMMANDS[name] = text, example, run, arguments


def _argument(*flags: str, **options: Any) -> tuple:
    return flags, options


class _Once(argparse.Action):
    """An option that may be given once: argparse takes the last of two silently."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: Any) -> None:
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, f"given twice: {getattr(namespace, self.dest)} and {value}")
        setattr(namespace, self.dest, value)


def _integer(low: int, *others: int) -> Callable[[str], int]:
    """A type of arguments: ``low`` or more, or one of ``others``."""

    def parse(text: str) -> int:
        with suppress(ValueError):
            if low <= (value := int(text)) < 2**63 or value in others:
                return value
        words = "".join(f" or {other}" for other in others)
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {low} to below 2⁶³{words}")

    return parse


def _sex(text: str) -> str:
    from resdm_suite.cohorts.tables import to_sex

    if not (sex := to_sex(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected F, M, female or male")
    return sex


def _condition(text: str) -> str:
    """A condition; ``sex_female`` is ``sex_F``."""
    return f"sex_{_sex(text.removeprefix('sex_'))}" if text.startswith("sex_") else text


def _repository(text: str) -> str:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text, flags=re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}: expected user/name, as on the Hugging Face Hub")
    return text


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with 1 ≤ I ≤ N, such as 2/4")
    return int(part), int(parts)


def _named_folder(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not (name and folder):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FOLDER, such as GAN=predictions/gan")
    return name, folder


CODE = " (code of this module runs)"

# ── commands of more than one call ────────────────────────────────────────────────────────────────


@records.alone("manifest")
def _manifest(
    config: Config, source: str, root: Path | None, tables: Path | None, draw_split: bool, download: bool, **fetch: Any
) -> Path:
    if download and source != "openneuro":
        raise ConfigError(f"--download fetches openneuro's data only; the source is {source}")
    if fetch["url"] and not download:
        raise ConfigError("--url is where --download fetches from; give both")
    if tables is not None:
        if source not in ("adni", "bids"):
            raise ConfigError(f"--tables are those of adni and bids; the source is {source}")
        config = replace(config, cohort=replace(config.cohort, tables=str(tables.absolute())))
    from resdm_suite.cohorts.assembly import find_sessions, make_manifest

    if download:
        from resdm_suite.cohorts.readers.openneuro import download as download_scans

        folder, options = root or config.source_root, {key: value for key, value in fetch.items() if value is not None}
        print(f"{download_scans(config, folder, **options)} files downloaded to {folder}")
    cohort = find_sessions(config, root, source, draw=draw_split)
    print("\n".join(_flow(cohort)))
    make_manifest(config, root, source, cohort=cohort)
    return config.manifest


def _flow(cohort: Cohort) -> list[str]:
    """The flow table, and the first sessions that were left out for each reason."""
    lines = [cohort.flow.to_string(index=False, justify="right")]
    for reason, rows in cohort.left_out.groupby("reason", sort=False):
        first = ", ".join(f"{row.person} {row.session}" for row in rows.head(2).itertuples())
        lines.append(f"left out, {reason}: {len(rows)} ({first}{', …' if len(rows) > 2 else ''})")
    if len(cohort.left_out) or cohort.notes:
        lines.append(f"all {len(cohort.left_out)} in left_out.csv; {len(cohort.notes)} notes in notes.txt")
    return lines


def _preprocess(config: Config, **options: Any) -> str:
    from resdm_suite.preprocessing.volumes import preprocess

    index = preprocess(config, **options)
    text = f"{len(index)} sessions of {index['person'].nunique()} people in {config.volumes}"
    unsure = len((config.volumes / "notes.txt").read_text(encoding="utf-8").splitlines())
    return text + (f"; {unsure} notes on scans in notes.txt" if unsure else "")


def _qc(config: Config, **options: Any) -> str:
    from resdm_suite.reporting.qc import write_qc

    table = write_qc(config, **options)
    return f"{len(table)} sessions, {(table['flags'] != '').sum()} flagged: {config.work / 'qc' / 'index.html'}"


def _names(config: Config, methods: list[str]) -> list[str]:
    return [name for name in methods or config.methods if config.method(name)]  # an error for an unknown one


def _of_methods(config: Config, method: list[str], progress: bool, *, run: str) -> None:
    names, (module, _, function) = _names(config, method), run.partition(":")
    for name in names:
        print(getattr(importlib.import_module(f"resdm_suite.apps.{module}"), function)(config, name, progress=progress))


def _predict(config: Config, method: list[str], condition: list[str] | None, **options: Any) -> None:
    names = _names(config, method)
    from resdm_suite.apps.synthesis import synthesise_method

    for name in names:
        for one in condition or ["factual"]:
            print(synthesise_method(config, name, one, **options))


def _stated(pairs: list[str] | None) -> dict[str, str]:
    """Attributes of ``--attribute NAME=VALUE``."""
    stated: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value) or name in stated:
            raise ConfigError(f"--attribute {pair}: expected NAME=VALUE, each name once, as --attribute education=16")
        stated[name] = value
    return stated


def _synthesise(t1w: Path | None, manifest: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
    if (t1w is None) == (manifest is None):
        raise ConfigError("expected either T1w.nii.gz or --manifest")
    prompt = {"age": options.pop("age"), "sex": options.pop("sex"), "attributes": _stated(options.pop("attribute"))}
    if manifest is not None and any(value not in (None, {}) for value in prompt.values()):
        raise ConfigError("--age, --sex and --attribute are of one MRI; with --manifest they are columns of the table")
    from torch import device

    from resdm.cpu_runtime import peak_memory
    from resdm_suite.apps.model_folder import load_card
    from resdm_suite.apps.single_scan import ScanError, input_check_text, synthesise_scan, synthesise_scans

    start = time.perf_counter()
    options["progress"] = not (quiet or as_json)
    rows: list[dict[str, Any]] = []
    if manifest is not None:
        rows = synthesise_scans(manifest, **options).to_dict("records")
        results: dict[str, Any] = {"scans": rows}
        lines = [f"{row['status']}: {row['person']} {row['session']}".rstrip() for row in rows]
        lines += [f"{row['person']}: {row['message']}" for row in rows if row["message"] and row["status"] != "failed"]
    else:
        files = synthesise_scan(t1w, **prompt, **options)
        found = input_check_text(files["record"])
        results = {"files": {name: str(path) for name, path in files.items()}, "input_check": found}
        lines = [*filter(None, [found]), *(f"{name}: {path}" for name, path in files.items())]
    notice, memory = load_card(options["model"]).notice, peak_memory(device("cpu"))
    seconds = time.perf_counter() - start
    if as_json:
        record = {"notice": notice, **results, "seconds": round(seconds, 1), "peak_memory_bytes": memory}
        print(json.dumps(record, indent=2, ensure_ascii=False))
    elif not quiet:
        print("\n".join([notice, *lines, f"{seconds:.0f} s, peak memory {memory / 2**30:.2f} GiB"]))
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        reasons = "\n".join(f"  {row['person']} {row['session']}: {row['message']}" for row in failed)
        raise ScanError(
            f"{len(failed)} of {len(rows)} scans failed:\n{reasons}\nthe others are done; correct these and run again"
        )


def _cost(config: Config, cores: int | None) -> str:
    from joblib import cpu_count

    from resdm.cpu_runtime import on_this_machine
    from resdm_suite.apps.cost import device_of, report, stages

    cores = cores or cpu_count()
    return report(list(stages(config, cores)), f"{on_this_machine(device_of(config))}, {cores} core{'s' * (cores > 1)}")


def _check(config: Config, deep: bool, settings: bool) -> str:
    if not settings and (faults := records.faults(config.work, deep=deep)):
        raise records.RecordError("\n".join(faults))
    return "\n".join(_summary(config))


def _step(config: Config, missing: str) -> str:
    """The command, or the change, that gives the first missing files."""
    profile, source = config.profile, config.cohort.source
    data = {"phantom": f"phantom {profile}", "dlbs": f"manifest openneuro {profile} --download"}.get(config.cohort.kind)
    if missing == "data" and data is None:
        return f"put the {source} data there, or give their place as cohort.folder of the profile"
    commands = {"data": data, "manifest": f"manifest {source} {profile}", "volumes": f"preprocess {profile}"}
    return f"`resdm {commands.get(missing, f'train {profile}')}`"


def _summary(config: Config) -> list[str]:
    grid, training = config.preprocess.grid, config.training
    shape = " x ".join(map(str, grid.shape))
    budget = f"{training.seconds:g} s" if training.budget == "equal_time" else f"{training.epochs} epochs"
    places = {"data": config.source_root, "manifest": config.manifest, "volumes": config.volumes / "index.csv"}
    places |= {f"model {name}": config.model(name) / "model.safetensors" for name in config.methods}
    missing = next((what for what, path in places.items() if not path.exists()), "")
    return [
        f"profile {config.profile}, digest {config.digest()}: valid" + (f" ({config.notice})" if config.notice else ""),
        f"cohort {config.cohort.kind}, grid {shape} of {grid.voxel_mm:g} mm, seed {config.seed}",
        f"training {budget}, batch {training.batch_size}, {training.precision}",
        *(f"method {name}: {method.kind}{CODE * (':' in method.kind)}" for name, method in config.methods.items()),
        *(f"{'there' if path.exists() else 'not there yet'}: {what}, {path}" for what, path in places.items()),
        *([f"next: {_step(config, missing)}"] if missing else []),
    ]


# ── the commands and their arguments ──────────────────────────────────────────────────────────────

PROFILE = _argument("profile", nargs="?", default="phantom", help="name or path of a YAML file (default: phantom)")
METHODS = _argument("method", nargs="*", help="methods of the profile (default: all)")
JOBS = _argument("--jobs", type=_integer(1, -1), default=1, help="people at a time; -1: one per core (default: 1)")
QUIET = _argument("--quiet", dest="progress", action="store_false", help="show no progress bar")
FOLDER = _argument("folder", type=Path, help="model folder")
REPOSITORY = _argument("repository", type=_repository, metavar="user/name", help="repository of the Hugging Face Hub")
TRUST = _argument("--trust-code", action="store_true", help="run the code of a model whose kind is module:Class")

# fmt: off
_command("init", "write a short profile for a study: it extends another profile", "mine --from dlbs --source csv",
         "profiles:write_profile", _argument("name", help="of the new profile"),
         _argument("--from", dest="base", default="dlbs", metavar="PROFILE",
                   help="profile of all other settings: dlbs for a GPU, phantom for a first try (default: dlbs)"),
         _argument("--source", choices=SOURCES, default="csv", help="layout of the data (default: csv)"),
         _argument("--data", type=Path, metavar="PATH", help="dataset, or table of csv (default: in work/NAME)"))
_command("phantom", "generate the phantom cohort as a BIDS dataset", "smoke --jobs -1",
         "cohorts.phantom:write_phantoms", PROFILE, JOBS, QUIET)
_command("dicom", "convert folders of DICOM, one per person, to a BIDS data set, by dcm2niix and pypet2bids",
         "scans bids", "cohorts.readers.dicom:convert_people",
         _argument("folder", type=Path, help="folder with one folder per person"),
         _argument("out", type=Path, help="folder of the new data set"),
         _argument("--t1w", metavar="REGEX", default=argparse.SUPPRESS,
                   help="descriptions of a T1 series (default: MPRAGE, SPGR, BRAVO, TFE or T1)"), QUIET)
_command("manifest", "list the sessions of a source, with their split, in manifest.csv", "openneuro dlbs --download",
         _manifest, _argument("source", choices=SOURCES, help="layout of the data"), PROFILE, QUIET,
         _argument("--root", type=Path, metavar="PATH", help="dataset, or table of csv (default: the profile's)"),
         _argument("--tables", type=Path, metavar="FOLDER",
                   help="adni: the study's tables; bids: the raw data set of prepared images (default: the profile's)"),
         _argument("--draw-split", action="store_true", help="csv, released: draw a split even if the source has one"),
         _argument("--download", action="store_true", help="openneuro: fetch the missing scans first"),
         _argument("--jobs", type=_integer(1), default=4, help="parallel connections of the download (default: 4)"),
         _argument("--url", metavar="URL", help="mirror of the download's bucket"))
_command("preprocess", "register and scale every scan of the manifest onto the profile's grid", "adni --jobs 8",
         _preprocess, PROFILE, JOBS, QUIET)
_command("qc", "measure and draw every preprocessed session: qc.csv, and a page of pictures", "adni --jobs 8",
         _qc, PROFILE, JOBS, QUIET)
_command("train", "train methods, or continue interrupted trainings", "phantom ResDM linear",
         partial(_of_methods, run="training:train_method"), PROFILE, METHODS, QUIET)
_command("predict", "synthesise and score the people of a split with trained methods",
         "phantom ResDM --condition no_age", _predict, PROFILE, METHODS, QUIET,
         _argument("--condition", type=_condition, action="append",
                   help="content of the prompt, such as no_age; may be repeated (default: factual)"),
         _argument("--split", default="test", choices=["test", "validation", "train"],
                   help="whom to synthesise (default: test)"),
         _argument("--shard", type=_shard, default=(1, 1), metavar="I/N",
                   help="make part I of N of the people, unscored; when all are made, run without it to score"))
_command("ceiling", "estimate the test people's PET from the phantoms' truth: least expected squared error",
         "phantom", "apps.ceiling:synthesise_ceiling", PROFILE, QUIET)
_command("sample", "draw several samples of validation and test people, to evaluate their spread", "phantom",
         "apps.synthesis:sample_method", PROFILE, QUIET)
_command("audit", "measure whether models memorised their training people: memorisation.json and the model card",
         "phantom ResDM", partial(_of_methods, run="memorisation:audit_method"), PROFILE, METHODS, QUIET)
_command("evaluators", "fit the evaluators of status, sex and age on real PET of training people", "phantom",
         "evaluation.downstream:fit_evaluators", PROFILE, QUIET)
_command("synthesise", "synthesise both PETs of one person, or of a table, from T1-weighted MRI",
         "T1w.nii.gz --age 74 --sex F --model work/adni/models/ResDM --out out", _synthesise,
         _argument("t1w", type=Path, nargs="?", metavar="T1w.nii.gz", help="NIfTI, or a folder of one DICOM series"),
         _argument("--manifest", type=Path, metavar="CSV", help="many MRIs: person, t1w; optional session, age, sex"),
         _argument("--age", type=float, action=_Once, help="years at scan; without it, the prompt has no age"),
         _argument("--sex", type=_sex, action=_Once, metavar="F|M", help="without it, the prompt has no sex"),
         _argument("--attribute", action="append", metavar="NAME=VALUE",
                   help="a further field of the model's prompt, as education=16; may be repeated"),
         _argument("--model", type=Path, required=True, metavar="FOLDER", help="such as work/phantom/models/ResDM"),
         _argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder"),
         _argument("--samples", type=_integer(1), default=4, help="samples; their mean is written (default: 4)"),
         _argument("--seed", type=_integer(0), help="seed of the noise (default: the model's)"),
         _argument("--steps", type=_integer(1), help="sampling steps (default: the model's)"),
         _argument("--allow-phantom-model", action="store_true",
                   help="use a model of phantoms for a real MRI; every output carries a notice"),
         _argument("--force", action="store_true",
                   help="use a T1 that is unlike those of the training people; every output states this"), TRUST,
         _argument("--quiet", action="store_true", help="print errors only"),
         _argument("--json", dest="as_json", action="store_true", help="print one JSON object, no progress bar"))
_command("page", "write a web page that synthesises PET in the browser; nothing leaves the machine",
         "work/phantom/models/ResDM --out page", "apps.page:write_page",
         _argument("model", type=Path, metavar="FOLDER", help="model folder of ResDM"),
         _argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the page"),
         _argument("--assets", type=Path, metavar="FOLDER",
                   help="archives of the page's libraries; fetched there if absent (default: work/npm)"),
         _argument("--accept-memorisation", action="store_true",
                   help="use a model that failed the audit of memorisation, or was not audited"),
         TRUST, QUIET)
_command("evaluate", "compare synthetic PET of any tool with real PET: tables, figures and a page",
         "scans.csv Ours=predictions/ours GAN=predictions/gan --out evaluated", "apps.evaluation:evaluate_volumes",
         _argument("table", type=Path, metavar="CSV",
                   help="person, age, sex, amyloid, tau (real PET); see docs/evaluate.md"),
         _argument("synthetic", type=_named_folder, nargs="*", metavar="NAME=FOLDER", help="volumes of a method"),
         _argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder"),
         _argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"),
                   help="SUVR that the values 0 and 1 stand for, where volumes are not in SUVR"),
         _argument("--trained-on", type=Path, metavar="CSV", help="column person: people a method was trained on"),
         QUIET)
_command("model show", "print the model card", "work/phantom/models/ResDM", "apps.model_card:show", FOLDER, TRUST)
_command("model push", "upload a model to the Hugging Face Hub, with the token of `hf auth login`",
         "work/phantom/models/ResDM user/resdm-phantom", "apps.hub:push", FOLDER, REPOSITORY, TRUST,
         _argument("--accept-memorisation", action="store_true",
                   help="upload a model that failed the audit of memorisation, or was not audited"),
         _argument("--public", dest="private", action="store_false", help="visible to everybody (default: private)"))
_command("model pull", "download a model from the Hugging Face Hub", "user/resdm-phantom models/resdm", "apps.hub:pull",
         REPOSITORY, FOLDER, TRUST, _argument("--revision", help="branch, tag or commit (default: main)"))
_command("cost", "time a second of each kind of work, and estimate the time of `make reproduce`", "adni --cores 8",
         _cost, PROFILE, _argument("--cores", type=_integer(1), help="cores for Snakemake (default: all)"))
_command("report", "build web pages of all results of a profile", "phantom", "reporting.site:write_report", PROFILE)
_command("figures", "redraw the figures of a run in another format, each with its caption as text",
         "phantom figure2 --format pdf --bare", "apps.figures:redraw", PROFILE,
         _argument("figure", nargs="*", help="names, such as figure2 (default: all)"),
         _argument("--format", dest="form", default="pdf", choices=["pdf", "svg", "png"], help="(default: pdf)"),
         _argument("--bare", action="store_true", help="no title, notice and explanation in the figure, for a paper"),
         _argument("--out", type=Path, metavar="FOLDER", help="output folder (default: work/PROFILE/paper)"))
_command("archive", "write an RO-Crate (zip) of tables, figures, the profile and, of open data, executed notebooks",
         "phantom", "apps.archive:archive", PROFILE,
         _argument("--out", type=Path, metavar="ZIP", help="the file (default: in work/PROFILE)"),
         _argument("--for-reading", action="store_true",
                   help="phantoms: what the analysis notebooks read without torch, see docs/commands.md"))
_command("check", "validate a profile, list its settings and files, and compare these with their records",
         "mine --deep", _check, PROFILE,
         _argument("--deep", action="store_true", help="read every file, also where its time has not changed"),
         _argument("--settings", action="store_true", help="validate the profile only; the workflow repairs files"))
_command("completion", "print a script that completes commands, options and files in a shell", "bash",
         lambda shell: shtab.complete(_parser(), shell), _argument("shell", choices=shtab.SUPPORTED_SHELLS))
_command("version", "print the version", "", lambda: __version__)
# fmt: on

if __name__ == "__main__":
    sys.exit(main())
