"""An archive of a run: a zip file that is an RO-Crate 1.1, for a repository of research data.

It holds the tables and figures with their sidecars, the profile and, where figures may show single people
(`Config.individual`), the executed notebooks. Scans, predictions, models and tables of people stay in ``work/``.
``ro-crate-metadata.json`` describes each file, what made it, and the inputs from which it was made, with their digests.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from resdm import __version__
from resdm.io import atomic
from resdm.settings import to_dict
from resdm_suite.profiles import Config
from resdm_suite.records import RecordError, read_json
from resdm_suite.reporting.provenance import outdated, sidecar_of

METADATA = "ro-crate-metadata.json"
MEDIA_TYPES = {".md": "text/markdown", ".tex": "application/x-tex", ".yaml": "application/yaml",
               ".ipynb": "application/x-ipynb+json"}  # fmt: skip


def archive(config: Config, out: Path | None = None) -> Path:
    """Write the archive of a profile's results.

    Parameters
    ----------
    config : Config
    out : path, optional
        The zip file; by default ``work/<profile>/<profile>_ro-crate.zip``.

    Returns
    -------
    Path
        The zip file.

    Raises
    ------
    RecordError
        No results, or some that are not of this run: edited, of other settings, of inputs that have changed.
    """
    made: dict[Path, list[Path]] = {}
    for path in sorted(config.figures.glob("*.*")):
        if sidecar := sidecar_of(config.figures, path.stem):
            made.setdefault(sidecar, []).append(path)
    again = f"run `make reproduce PROFILE={config.profile}`"
    if not made:
        raise RecordError(f"{config.figures}: no results; {again} first")
    if faults := [f"{path}: {fault}" for path in made if (fault := outdated(config, path.stem))]:
        raise RecordError("\n".join([*faults, f"{again} again"]))
    paths = [path for files in made.values() for path in files]
    paths += sorted((config.work / "notebooks").glob("*.ipynb")) if config.individual else []
    contents = {path.relative_to(config.root).as_posix(): path.read_bytes() for path in paths}
    settings = yaml.safe_dump(to_dict(config.shareable), sort_keys=False, allow_unicode=True)
    contents[f"configs/{config.profile}.yaml"] = settings.encode()
    graph = [*_describe(config, contents), *_actions(config, made, set(contents))]
    context = [f"{_CRATE}/context", {"sha256": "https://schema.org/sha256"}]
    metadata = json.dumps({"@context": context, "@graph": graph}, indent=2, ensure_ascii=False)
    out = out or config.work / f"{config.profile}_ro-crate.zip"
    with atomic(out) as temporary, zipfile.ZipFile(temporary, "w") as crate:
        for name, content in ({METADATA: metadata.encode()} | contents).items():
            crate.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # no time: same results, same bytes
    return out


_CRATE = "https://w3id.org/ro/crate/1.1"


def _describe(config: Config, contents: dict[str, bytes]) -> list[dict[str, Any]]:
    """The crate, the software, the terms of use, and each file."""
    terms = "MIT" if config.cohort.kind == "phantom" else "the cohort's terms of use of data"
    return [
        {"@id": METADATA, "@type": "CreativeWork", "conformsTo": {"@id": _CRATE}, "about": {"@id": "./"}},
        {
            "@id": "./", "@type": "Dataset", "name": f"ResDM suite: results of the profile {config.profile}",
            "description": f"Tables and figures. {config.notice}".strip(), "datePublished": date.today().isoformat(),
            "license": {"@id": "#terms"}, "hasPart": [{"@id": name} for name in contents],
        },
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
