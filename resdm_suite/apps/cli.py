"""The command line: ``resdm <command>``.

Heavy packages are imported by the command that needs them: ``resdm --help`` and ``resdm check`` answer at once, where
torch, open_clip and nilearn together take seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdm import __version__
from resdm.settings import SEXES, ConfigError
from resdm_suite.profiles import SOURCES, Config, load_config

if TYPE_CHECKING:
    from resdm_suite.cohorts.matching import Cohort

BAD_INPUT, UNEXPECTED, INTERRUPTED = 2, 1, 130
"""Exit codes beside 0; argparse uses 2 for the same."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    int
        0: done; 2: bad input, said in a line on standard error; 1: anything unexpected, with its traceback.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if _is_ours(error):
            print(f"resdm {options.command}: {error}", file=sys.stderr)
            return BAD_INPUT
        traceback.print_exc()
        return UNEXPECTED
    return 0


def _is_ours(error: Exception) -> bool:
    """Whether an error is one that this package raises on purpose, to tell a person what to mend."""
    if type(error).__module__.startswith("resdm") or isinstance(error, FileNotFoundError):
        return True
    if not isinstance(error, ValueError):
        return False
    # One that a library raises, or Python itself, is a fault of this package: its text helps nobody to mend the input.
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return frame.f_globals.get("__name__", "").startswith("resdm") and line.startswith("raise")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resdm", description="Synthesise amyloid and tau PET from MRI: the suite of Ou et al., IJCAI 2024."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    def profile(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("profile", nargs="?", default="phantom", help="name or path of a YAML file (default: phantom)")

    def methods(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("method", nargs="*", help="names of methods in the profile (default: all)")

    def jobs(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--jobs", type=int, default=1, help="people at a time; -1: as many as cores (default: 1)")

    def quiet(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = command("phantom", _phantom, "write the phantom cohort as a BIDS dataset")
    profile(sub), jobs(sub), quiet(sub)

    sub = command("manifest", _manifest, "list the sessions of a source, with their split, in manifest.csv")
    sub.add_argument("source", choices=SOURCES, help="how the data lie")
    profile(sub), quiet(sub)
    sub.add_argument("--root", type=Path, metavar="PATH", help="the data set, or the table of csv (default: profile's)")
    sub.add_argument("--tables", type=Path, metavar="FOLDER", help="adni: the study's tables (default: the profile's)")
    sub.add_argument("--draw-split", action="store_true", help="csv, released: draw a split where the source has one")
    sub.add_argument("--download", action="store_true", help="openneuro: fetch what is missing of the manifest's scans")
    sub.add_argument("--jobs", type=_positive, default=4, help="connections of the download at a time (default: 4)")
    sub.add_argument("--url", metavar="URL", help="of the bucket of the download, if it is a mirror")

    sub = command("preprocess", _preprocess, "register and scale every scan of the manifest onto the profile's grid")
    profile(sub), jobs(sub), quiet(sub)

    sub = command("qc", _qc, "measure and draw every preprocessed session: qc.csv, and a page to look through")
    profile(sub), jobs(sub), quiet(sub)

    sub = command("train", _train, "train methods, or go on where a training was stopped")
    profile(sub), methods(sub), quiet(sub)

    sub = command("predict", _predict, "synthesise and score the people of a split with trained methods")
    profile(sub), methods(sub), quiet(sub)
    sub.add_argument("--condition", action="append", help="what the prompt says; may be repeated (default: factual)")
    sub.add_argument("--split", default="test", choices=["test", "validation", "train"])
    sub.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="make the I-th of N parts of the people, unscored; when all are made, run without it to score",
    )

    sub = command("ceiling", _ceiling, "estimate test people's PET from the phantoms' truth: what no method can pass")
    profile(sub), quiet(sub)

    sub = command("sample", _sample, "draw several samples of validation and test people, to judge their spread")
    profile(sub), quiet(sub)

    sub = command("evaluators", _evaluators, "fit the evaluators of status, sex and age on real PET of training people")
    profile(sub), quiet(sub)

    sub = command("synthesise", _synthesise, "make both PETs of one person, or of a table, from T1-weighted MRI")
    scans = sub.add_mutually_exclusive_group(required=True)
    scans.add_argument("t1w", type=Path, nargs="?", metavar="T1w.nii.gz")
    scans.add_argument("--manifest", type=Path, metavar="table.csv", help="person, t1w; session, age, sex where known")
    sub.add_argument("--age", type=float, action=_Once, help="years at scan; left out of the prompt where not given")
    sub.add_argument("--sex", choices=SEXES, action=_Once, help="left out of the prompt where not given")
    sub.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="such as work/phantom/models/ResDM")
    sub.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    sub.add_argument("--samples", type=_positive, default=4, help="whose mean is written (default: 4)")
    sub.add_argument("--seed", type=int, help="of the noise (default: the model's)")
    sub.add_argument("--steps", type=_positive, help="of sampling (default: the model's)")
    sub.add_argument(
        "--allow-phantom-model",
        action="store_true",
        help="let a model that has seen phantoms only take a real MRI; every output says so",
    )
    sub.add_argument("--quiet", action="store_true", help="print nothing but errors")
    sub.add_argument("--json", action="store_true", help="print one JSON object, no progress bar")

    sub = command("model", lambda options: options.act(options), "show, push or pull a model folder")
    acts = sub.add_subparsers(dest="act_name", required=True, metavar="action")
    act = acts.add_parser("show", help="print its card")
    act.set_defaults(act=_model_show)
    act.add_argument("folder", type=Path)
    act = acts.add_parser("push", help="upload it to the Hugging Face Hub, with the token of `hf auth login`")
    act.set_defaults(act=_model_push)
    act.add_argument("folder", type=Path)
    act.add_argument("repository", metavar="user/name")
    act.add_argument("--public", action="store_true", help="for everybody to see (default: private)")
    act = acts.add_parser("pull", help="download one from the Hugging Face Hub")
    act.set_defaults(act=_model_pull)
    act.add_argument("repository", metavar="user/name")
    act.add_argument("folder", type=Path)
    act.add_argument("--revision", help="branch, tag or commit (default: main)")

    sub = command("cost", _cost, "time a second of each kind of work and tell what `make reproduce` will take here")
    profile(sub)
    sub.add_argument("--cores", type=_positive, help="that Snakemake is given (default: all)")

    profile(command("report", _report, "tie all that a profile has made into pages to look through"))
    profile(command("check", _check, "read a profile strictly and say what it holds and what is there already"))
    command("version", _version, "print the version")
    return parser


class _Once(argparse.Action):
    """A value that may be given once: argparse would take the last of two without a word."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: Any) -> None:
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, f"given twice: {getattr(namespace, self.dest)} and {value}")
        setattr(namespace, self.dest, value)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part: expected I/N with 1 ≤ I ≤ N, such as 2/4")
    return int(part), int(parts)


def _phantom(options: argparse.Namespace) -> None:
    config = load_config(options.profile)
    from resdm_suite.cohorts.phantom import write_phantoms

    print(write_phantoms(config, jobs=options.jobs, progress=not options.quiet))


def _manifest(options: argparse.Namespace) -> None:
    config = load_config(options.profile)
    if options.download and options.source != "openneuro":
        raise ConfigError(f"--download fetches openneuro's data only; the source is {options.source}")
    if options.tables is not None:
        config = replace(config, cohort=replace(config.cohort, tables=str(options.tables.absolute())))
    from resdm_suite.cohorts.assembly import find_sessions, make_manifest

    if options.download:
        from resdm_suite.cohorts.readers.openneuro import download

        address = {"url": options.url} if options.url else {}
        root = config.source_root if options.root is None else options.root
        n = download(config, root, jobs=options.jobs, progress=not options.quiet, **address)
        print(f"{n} files downloaded to {root}")
    found = find_sessions(config, options.root, options.source, draw=options.draw_split)
    print("\n".join(_flow(found)))
    make_manifest(config, options.root, options.source, found=found)
    print(config.manifest)


def _flow(found: Cohort) -> list[str]:
    """The flow table, who was left out by reason with the first of each, and where the rest is told."""
    lines = [found.flow.to_string(index=False, justify="right")]
    for reason, rows in found.left_out.groupby("reason", sort=False):
        first = ", ".join(f"{row.person} {row.session}" for row in rows.head(2).itertuples())
        lines.append(f"left out, {reason}: {len(rows)} ({first}{', …' if len(rows) > 2 else ''})")
    if len(found.left_out) or found.notes:
        lines.append(f"all {len(found.left_out)} in left_out.csv; {len(found.notes)} notes in notes.txt")
    return lines


def _preprocess(options: argparse.Namespace) -> None:
    config = load_config(options.profile)
    from resdm_suite.preprocessing.volumes import preprocess

    index = preprocess(config, jobs=options.jobs, progress=not options.quiet)
    print(f"{len(index)} sessions of {index['person'].nunique()} people in {config.volumes}")


def _qc(options: argparse.Namespace) -> None:
    config = load_config(options.profile)
    from resdm_suite.reporting.qc import write_qc

    table = write_qc(config, jobs=options.jobs, progress=not options.quiet)
    print(f"{len(table)} sessions, {(table['flags'] != '').sum()} flagged: {config.work / 'qc' / 'index.html'}")


def _methods(options: argparse.Namespace) -> tuple[Config, list[str]]:
    config = load_config(options.profile)
    return config, [name for name in options.method or config.methods if config.method(name)]  # all known, or an error


def _train(options: argparse.Namespace) -> None:
    config, names = _methods(options)
    from resdm_suite.apps.training import train_method

    for name in names:
        print(train_method(config, name, progress=not options.quiet))


def _predict(options: argparse.Namespace) -> None:
    config, names = _methods(options)
    from resdm_suite.apps.synthesis import synthesise_method

    for name in names:
        for condition in options.condition or ["factual"]:
            chosen = {"split": options.split, "shard": options.shard, "progress": not options.quiet}
            print(synthesise_method(config, name, condition, **chosen))


def _ceiling(options: argparse.Namespace) -> None:
    config = load_config(options.profile)
    from resdm_suite.apps.ceiling import synthesise_ceiling

    print(synthesise_ceiling(config, progress=not options.quiet))


def _sample(options: argparse.Namespace) -> None:
    config = load_config(options.profile)
    from resdm_suite.apps.synthesis import sample_method

    print(sample_method(config, progress=not options.quiet))


def _evaluators(options: argparse.Namespace) -> None:
    config = load_config(options.profile)
    from resdm_suite.evaluation.downstream import fit_evaluators

    print(fit_evaluators(config, progress=not options.quiet))


def _synthesise(options: argparse.Namespace) -> None:
    if options.manifest is not None and (options.age is not None or options.sex is not None):
        raise ConfigError("--age and --sex are of one MRI; with --manifest they are columns of the table")
    from resdm_suite.apps.model_folder import load_card
    from resdm_suite.apps.single_scan import ScanError, peak_memory_bytes, synthesise_scan, synthesise_scans

    start = time.perf_counter()
    asked = {
        "samples": options.samples,
        "seed": options.seed,
        "steps": options.steps,
        "allow_phantom_model": options.allow_phantom_model,
        "progress": not (options.quiet or options.json),
    }
    said, failed = {}, []
    if options.manifest is not None:
        rows = synthesise_scans(options.manifest, options.model, options.out, **asked).to_dict("records")
        failed = [row for row in rows if row["status"] == "failed"]
        said["scans"] = rows
        lines = [f"{row['status']}: {row['person']} {row['session']}".rstrip() for row in rows]
    else:
        files = synthesise_scan(options.t1w, options.model, options.out, age=options.age, sex=options.sex, **asked)
        said["files"] = {name: str(path) for name, path in files.items()}
        lines = [f"{name}: {path}" for name, path in files.items()]
    notice, memory = load_card(options.model).notice, peak_memory_bytes()
    said = {"notice": notice} | said
    said |= {"seconds": round(time.perf_counter() - start, 1), "peak_memory_bytes": memory}
    if options.json:
        print(json.dumps(said, indent=2, ensure_ascii=False))
    elif not options.quiet:
        print("\n".join([notice, *lines, f"{said['seconds']:.0f} s, peak memory {memory / 2**30:.2f} GiB"]))
    if failed:
        reasons = "\n".join(f"  {row['person']} {row['session']}: {row['message']}" for row in failed)
        raise ScanError(
            f"{len(failed)} of {len(rows)} scans failed:\n{reasons}\nthe others are done; mend these and run it again"
        )


def _model_show(options: argparse.Namespace) -> None:
    from resdm_suite.apps.model_card import show

    print(show(options.folder))


def _model_push(options: argparse.Namespace) -> None:
    from resdm_suite.apps.hub import push

    print(push(options.folder, options.repository, private=not options.public))


def _model_pull(options: argparse.Namespace) -> None:
    from resdm_suite.apps.hub import pull

    print(pull(options.repository, options.folder, revision=options.revision))


def _report(options: argparse.Namespace) -> None:
    config = load_config(options.profile)
    from resdm_suite.reporting.site import write_report

    print(write_report(config))


def _cost(options: argparse.Namespace) -> None:
    config = load_config(options.profile)
    from joblib import cpu_count

    from resdm.cpu_runtime import on_this_machine
    from resdm_suite.apps.cost import device_of, report, stages

    cores = options.cores or cpu_count()
    print(report(list(stages(config, cores)), f"{on_this_machine(device_of(config))}, {cores} core{'s' * (cores > 1)}"))


def _check(options: argparse.Namespace) -> None:
    print("\n".join(_summary(load_config(options.profile))))


def _summary(config: Config) -> list[str]:
    grid, training = config.preprocess.grid, config.training
    shape = " x ".join(map(str, grid.shape))
    budget = f"{training.seconds:g} s" if training.budget == "equal_time" else f"{training.epochs} epochs"
    places = {"BIDS": config.source_root, "manifest": config.manifest, "volumes": config.volumes / "index.csv"}
    places |= {f"model {name}": config.model(name) / "model.safetensors" for name in config.methods}
    return [
        f"profile {config.profile}, digest {config.digest()}: valid" + (f" ({config.notice})" if config.notice else ""),
        f"cohort {config.cohort.kind}, grid {shape} of {grid.voxel_mm:g} mm, seed {config.seed}",
        f"training {budget}, batch {training.batch_size}, {training.precision}",
        *(f"method {name}: {method.kind}" for name, method in config.methods.items()),
        *(f"{'there' if path.exists() else 'not there yet'}: {what}, {path}" for what, path in places.items()),
    ]


def _version(options: argparse.Namespace) -> None:
    print(__version__)


if __name__ == "__main__":
    sys.exit(main())
