"""Model folders to and from the Hugging Face Hub: safetensors, configuration and card, nothing else."""

import os
import shutil
import tempfile
from pathlib import Path

import yaml
from huggingface_hub import HfApi, snapshot_download

from resdm.checkpoint import CheckpointError, load_model
from resdm.io import write_text
from resdm.settings import to_dict
from resdm_suite.apps.model_folder import PROVENANCE, ModelCard, load_card, read_audit
from resdm_suite.evaluation.memorisation import LIMIT
from resdm_suite.paths import CALIBRATION, INPUT_CHECK, MEMORISATION, visible

REQUIRED = ("README.md", "config.yaml", "model.safetensors")
FILES = (*REQUIRED, "history.csv", "timing.json", PROVENANCE, INPUT_CHECK, CALIBRATION, MEMORISATION)
"""Files of a shared model folder. A pickle such as ``state.pt`` is not allowed: reading it could run code."""


class HubError(RuntimeError):
    """The Hub cannot be used, or refuses."""


def push(
    folder: str | Path,
    repository: str,
    *,
    private: bool = True,
    trust_code: bool = False,
    accept_memorisation: bool = False,
) -> str:
    """Upload a trained model folder that has its card; returns the address of the commit.

    ``repository`` is ``user/name`` and is created if needed, private if ``private`` is set. Absolute paths of the
    cohort and of atlases in ``config.yaml`` are not uploaded. ``trust_code`` is as in `resdm.load_model`.
    ``accept_memorisation`` uploads a model that `check_memorisation` refuses.

    Raises
    ------
    CheckpointError
        No finished model folder, or one that holds other files than `FILES`.
    HubError
        The Hub refuses, or cannot be reached.
    """
    card = load_card(folder, trust_code=trust_code)
    if not accept_memorisation:
        check_memorisation(card)
    paths = (path for path in visible(card.folder, "**/*") if not path.is_dir())
    names = [str(path.relative_to(card.folder)) for path in paths]
    other, missing = [name for name in names if name not in FILES], [name for name in REQUIRED if name not in names]
    if other or missing:
        problems = [f"beside them {', '.join(other)}"] * bool(other) + [f"no {', no '.join(missing)}"] * bool(missing)
        remedy = "the training is not finished" if "state.pt" in other else "move the rest away, or train again"
        raise CheckpointError(
            f"{card.folder}: a model to share contains {', '.join(FILES)}; found {' and '.join(problems)}; {remedy}"
        )
    weights = getattr(getattr(card.settings, "prior", None), "weights", "none")
    if Path(weights).is_absolute():
        raise CheckpointError(f"{card.folder}/config.yaml: prior.weights is a path of this machine ({weights})")
    with tempfile.TemporaryDirectory() as staged:
        for name in names:
            shutil.copyfile(card.folder / name, Path(staged, name))
        if (shared := card.config.shareable) != card.config:
            write_text(Path(staged, "config.yaml"), yaml.safe_dump(to_dict(shared), sort_keys=False))
        try:
            api, message = HfApi(), f"{card.name}, {card.digest[:16]}"
            api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
            options = {"repo_type": "model", "allow_patterns": list(FILES), "commit_message": message}
            commit = api.upload_folder(repo_id=repository, folder_path=staged, **options)
        except Exception as error:
            raise _hub_error(repository, "uploaded", error) from error
    return str(getattr(commit, "commit_url", commit))


def check_memorisation(card: ModelCard) -> None:
    """Raise `CheckpointError` for a model whose errors identify its training people, or that was not audited.

    Also for one with a linear path, whose weights hold images of training people. A model of phantoms needs no audit.
    """
    if not card.phantom and getattr(getattr(card.settings, "network", None), "linear_path", False):
        raise CheckpointError(
            f"{card.folder}: the weights of network.linear_path hold images of the training people; train with "
            "linear_path: false, or share it with their consent (--accept-memorisation)"
        )
    found = read_audit(card)
    if not found and not card.phantom:
        raise CheckpointError(
            f"{card.folder}: it is not known whether it memorised its training people; measure it by `resdm audit`, or "
            "use --accept-memorisation"
        )
    if found and not found["auc_low"] <= LIMIT:
        raise CheckpointError(
            f"{card.folder}: its training people can be identified by the error of their synthetic PET: AUC "
            f"{found['auc']:.2f} [{found['auc_low']:.2f}, {found['auc_high']:.2f}], lower end above {LIMIT:g}; train "
            "it on more people or for fewer epochs, or share it with their consent (--accept-memorisation)"
        )


def pull(repository: str, folder: str | Path, *, revision: str | None = None, trust_code: bool = False) -> Path:
    """Download a model folder ``user/name``, and keep it only if its weights load.

    ``folder`` must not exist, or be empty. ``revision`` is a branch, tag or commit. Without ``trust_code``, a model
    that needs code of another package is refused.

    Raises
    ------
    CheckpointError
        ``folder`` exists, or the download is no model of this package; nothing is left behind.
    HubError
        No such repository, or the Hub cannot be reached.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pull-") as temporary:
        target, model = Path(temporary, "hub"), Path(temporary, "model")
        try:
            options = {"local_dir": target, "allow_patterns": list(FILES)}
            source = Path(snapshot_download(repository, revision=revision, **options))
        except Exception as error:
            raise _hub_error(repository, "downloaded", error) from error
        model.mkdir()
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, model / name)
        try:
            load_card(model, trust_code=trust_code)
            load_model(model, trust_code=trust_code)
        except CheckpointError as error:
            raise CheckpointError(f"{repository}: no model of resdm: {error}") from error
        if folder.is_dir():
            folder.rmdir()
        os.replace(model, folder)
    return folder


def _hub_error(repository: str, action: str, error: Exception) -> HubError:
    """One line for any error of the client, whose network errors have no common class across its versions."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if type(error).__name__ in ("ConnectError", "ConnectTimeout", "LocalEntryNotFoundError"):
        reason = f"the Hub cannot be reached: {reason}"
    return HubError(f"{repository}: not {action} ({reason})")
