"""Model folders to and from the Hugging Face Hub: safetensors, configuration and card, nothing else."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from resdm.checkpoint import CheckpointError, load_card, load_model
from resdm.io import write_text
from resdm.settings import to_dict
from resdm_suite.profiles import FidelityConfig

REQUIRED = ("README.md", "config.yaml", "model.safetensors")
FILES = (*REQUIRED, "history.csv", "timing.json", "provenance.json")
"""What a shared model folder may hold. No pickle is among them: ``state.pt`` could run code when it is read."""


class HubError(RuntimeError):
    """The Hub, or what lies there, cannot be used."""


def push(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a model folder.

    Parameters
    ----------
    folder : path
        Trained and with its card. Absolute paths in ``config.yaml``, of the cohort and of atlases, stay at home.
    repository : str
        ``user/name``; made where there is none.
    private : bool
        Of a repository that is made.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    CheckpointError
        No finished model folder, or one that holds other files than `FILES`.
    HubError
        The Hub refuses, or cannot be reached.
    """
    card = load_card(folder)
    there = sorted(str(path.relative_to(card.folder)) for path in card.folder.rglob("*") if not path.is_dir())
    other, missing = [name for name in there if name not in FILES], [name for name in REQUIRED if name not in there]
    if other or missing:
        raise CheckpointError(
            f"{card.folder}: a model to share holds {', '.join(FILES)}; found "
            + " and ".join(filter(None, [f"beside them {', '.join(other)}" if other else "",
                                         f"no {', no '.join(missing)}" if missing else ""]))
            + ("; the training is not finished" if "state.pt" in other else "; move the rest away, or train again")
        )  # fmt: skip
    weights = getattr(getattr(card.settings, "prior", None), "weights", "none")
    if Path(weights).is_absolute():
        raise CheckpointError(f"{card.folder}/config.yaml: prior.weights is a path of this machine ({weights})")
    cohort = card.config.cohort
    fidelity = card.config.fidelity
    places = [cohort.folder, cohort.tables, fidelity.atlas, fidelity.labels]
    places += [fidelity.centiloid.cortex, fidelity.centiloid.reference] if fidelity.centiloid else []
    absolute = any(Path(path or "").is_absolute() for path in places)
    try:
        with tempfile.TemporaryDirectory() as staged:
            for name in there:
                shutil.copyfile(card.folder / name, Path(staged, name))
            if absolute:
                cohort = replace(cohort, folder="data", tables=None)
                shared = replace(card.config, cohort=cohort, fidelity=FidelityConfig())
                write_text(Path(staged, "config.yaml"), yaml.safe_dump(to_dict(shared), sort_keys=False))
            api = HfApi()
            api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                repo_type="model",
                folder_path=staged,
                allow_patterns=list(FILES),
                commit_message=f"{card.name}, {card.digest[:16]}",
            )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        raise HubError(f"{repository}: not uploaded ({_line(error)})") from error
    return str(getattr(done, "commit_url", done))


def pull(repository: str, folder: str | Path, *, revision: str | None = None) -> Path:
    """Download a model folder, and keep it only if its weights load.

    Parameters
    ----------
    repository : str
        ``user/name``.
    folder : path
        Must not be there yet, or be empty.
    revision : str, optional
        Branch, tag or commit.

    Raises
    ------
    CheckpointError
        ``folder`` is taken, or what was found is no model of this package; nothing is left behind.
    HubError
        No such repository, or the Hub cannot be reached.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: is there already; name a folder that is not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pull-") as temporary:
        try:
            found = Path(
                snapshot_download(
                    repository, revision=revision, local_dir=Path(temporary, "hub"), allow_patterns=list(FILES)
                )
            )
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
            raise HubError(f"{repository}: not downloaded ({_line(error)})") from error
        kept = Path(temporary, "model")
        kept.mkdir()
        for name in FILES:
            if (found / name).is_file():
                shutil.copyfile(found / name, kept / name)
        try:
            load_model(kept)
        except CheckpointError as error:
            raise CheckpointError(f"{repository}: no model of resdm: {error}") from error
        if folder.is_dir():
            folder.rmdir()
        os.replace(kept, folder)
    return folder


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
