"""An archive of a run: a zip file that is an RO-Crate 1.1, for a repository of research data.

It holds the tables and figures with their sidecars, the profile and, where figures may show single people
(`Config.individual`), the executed notebooks. Scans, predictions, models and tables of people stay in ``work/``.
``ro-crate-metadata.json`` describes each file, what made it, and the inputs from which it was made, with their digests.

An archive for reading holds, instead of pictures and executed notebooks, what the notebooks of `READABLE` need to run
where neither torch nor this checkout is: themselves, scores, readings of the evaluators, and volumes. Volumes show
single people, so it is written of phantoms only.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import warnings
import zipfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from resdm import __version__
from resdm.io import atomic, is_leftover
from resdm.settings import ConfigError, to_dict
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.paths import visible
from resdm_suite.profiles import Config
from resdm_suite.records import RecordError, read_json
from resdm_suite.reporting.provenance import outdated, sidecar_of
from resdm_suite.reporting.site import SECTIONS

METADATA = "ro-crate-metadata.json"
MEDIA_TYPES = {".md": "text/markdown", ".tex": "application/x-tex", ".yaml": "application/yaml",
               ".ipynb": "application/x-ipynb+json"}  # fmt: skip

READABLE = ("00", "04", "05", "06", "07", "08", "09", "10", "11", "13", "15", "17", "19", "20")
"""Notebooks that need no torch. Of the others, 01 makes the volumes, 12 is of another profile, the rest run a model."""


def archive(config: Config, out: Path | None = None, *, for_reading: bool = False) -> Path:
    """Write the archive of a profile's results.

    Parameters
    ----------
    config : Config
    out : path, optional
        The zip file; by default ``work/<profile>/<profile>_ro-crate.zip``, or ``…_reading.zip``.
    for_reading : bool
        What the notebooks of `READABLE` read, instead of pictures and executed notebooks.

    Returns
    -------
    Path
        The zip file.

    Raises
    ------
    ConfigError
        An archive for reading of people who are no phantoms.
    RecordError
        No results, or some that are not of this run: edited, of other settings, of inputs that have changed. Those
        that a run of this profile does not make (``stress``) are left out with a warning.
    """
    if for_reading and config.cohort.kind != "phantom":
        raise ConfigError(
            f"profile {config.profile!r}: an archive for reading holds volumes of single people, and is written of "
            "phantoms only; leave out --for-reading"
        )
    made: dict[Path, list[Path]] = {}
    for path in visible(config.figures, "*.*"):
        if (sidecar := sidecar_of(config.figures, path.stem)) and not (for_reading and path.suffix in _PICTURES):
            made.setdefault(sidecar, []).append(path)
    again = f"run `make reproduce PROFILE={config.profile}`"
    if not made:
        raise RecordError(f"{config.figures}: no results; {again} first")
    faults = {path: fault for path in made if (fault := outdated(config, path.stem))}
    # A result that this profile's run does not make may be a tracked one, of another machine.
    optional = {name for section in SECTIONS if not section.needed(config) for name in section.outputs}
    for path in [path for path in faults if path.stem in optional]:
        warnings.warn(f"{path}: {faults.pop(path)}; left out", stacklevel=2)
        del made[path]
    if faults:
        raise RecordError("\n".join([*(f"{path}: {fault}" for path, fault in faults.items()), f"{again} again"]))
    paths = [path for files in made.values() for path in files]
    if for_reading:
        paths += [path for name in READABLE for path in visible(config.root / "notebooks", f"{name}_*.ipynb")]
        paths += visible(config.root / "data_manifests" / "paper", "*.csv")
    elif config.individual:
        paths += visible(config.work / "notebooks", "*.ipynb")
    contents = {path.relative_to(config.root).as_posix(): path.read_bytes() for path in paths}
    settings = yaml.safe_dump(to_dict(config.shareable), sort_keys=False, allow_unicode=True)
    contents[f"configs/{config.profile}.yaml"] = settings.encode()
    stored = {path.relative_to(config.root).as_posix(): path for path in _stored(config)} if for_reading else {}
    graph = [*_describe(config, contents, len(stored)), *_actions(config, made, {*contents, *stored})]
    context = [f"{_CRATE}/context", {"sha256": "https://schema.org/sha256"}]
    metadata = json.dumps({"@context": context, "@graph": graph}, indent=2, ensure_ascii=False)
    out = out or config.work / f"{config.profile}_{'reading' if for_reading else 'ro-crate'}.zip"
    with atomic(out) as temporary, zipfile.ZipFile(temporary, "w") as crate:
        for name, content in ({METADATA: metadata.encode()} | contents).items():
            # without a time: the same results give the same bytes, on one day
            crate.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        for name, path in stored.items():
            packed = zipfile.ZIP_STORED if path.suffix in (".gz", ".npz") else zipfile.ZIP_DEFLATED
            crate.writestr(zipfile.ZipInfo(name), path.read_bytes(), packed)
    return out


_PICTURES = (".png", ".svg")


def _stored(config: Config) -> Iterator[Path]:
    """Files below the work folder that the notebooks of `READABLE` read."""
    split = read_index(config, None).set_index("person")["split"].to_dict()
    yield from visible(config.work, "*.csv")
    yield from visible(config.work / "models", "*/timing.json")
    for folder in ("truth", "volumes", "predictions", "evaluation"):
        for path in sorted((config.work / folder).rglob("*")):  # with the records, whose names begin with a dot
            parts = path.relative_to(config.work).parts
            people = [split[part] for part in parts if part in split]
            # of training people the volumes: notebook 17 fits its controls on them, 19 the limit of atrophy
            shown = not people or people[0] == "test" or (people[0] == "train" and folder == "volumes")
            kept = path.suffix in (".csv", ".json", ".gz", ".npz") and not is_leftover(path)
            if kept and shown and "samples" not in parts:
                yield path


_CRATE = "https://w3id.org/ro/crate/1.1"


def _describe(config: Config, contents: dict[str, bytes], stored: int) -> list[dict[str, Any]]:
    """The crate, the software, the terms of use, each file of ``contents``, and the number of files ``stored``."""
    data = {
        "@id": f"work/{config.profile}/", "@type": "Dataset", "name": "scores, readings and volumes",
        "description": f"{stored} files; each folder's .record.json has their digests",
    }  # fmt: skip
    terms = "MIT" if config.cohort.kind == "phantom" else "the cohort's terms of use of data"
    return [
        {"@id": METADATA, "@type": "CreativeWork", "conformsTo": {"@id": _CRATE}, "about": {"@id": "./"}},
        {
            "@id": "./", "@type": "Dataset", "name": f"ResDM suite: results of the profile {config.profile}",
            "description": f"Tables and figures. {config.notice}".strip(), "datePublished": date.today().isoformat(),
            "license": {"@id": "#terms"},
            "hasPart": [{"@id": name} for name in [*contents, *[data["@id"]] * (stored > 0)]],
        },
        *[data] * (stored > 0),
        {"@id": "#terms", "@type": "CreativeWork", "name": terms},
        {"@id": "#suite", "@type": "SoftwareApplication", "name": "ResDM suite", "version": __version__},
        *(
            {
                "@id": name, "@type": "File", "name": Path(name).name, "contentSize": str(len(content)),
                "encodingFormat": MEDIA_TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "text/plain",
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for name, content in contents.items()
        ),
    ]  # fmt: skip


def _actions(config: Config, made: dict[Path, list[Path]], inside: set[str]) -> list[dict[str, Any]]:
    """What made each result, from its sidecar; and the inputs that are not in the archive."""
    actions, outside = [], {}
    for sidecar, files in made.items():
        record = read_json(sidecar)
        ids = {name: name if name in inside else f"#{name}" for name in record["inputs"]}
        outside |= {ids[name]: (name, digest) for name, digest in record["inputs"].items() if name not in inside}
        actions.append({
            "@id": f"#make-{sidecar.stem}", "@type": "CreateAction",
            "name": f"{sidecar.stem}, code {record['code']['commit']}",
            "instrument": {"@id": "#suite"}, "object": [{"@id": one} for one in ids.values()],
            "result": [{"@id": path.relative_to(config.root).as_posix()} for path in files],
        })  # fmt: skip
    inputs = [
        {"@id": one, "@type": "CreativeWork", "name": name, "sha256": digest, "description": "not in this archive"}
        for one, (name, digest) in outside.items()
    ]
    return actions + inputs
