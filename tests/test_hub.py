"""Upload and download of model folders; the Hub is a folder on disk."""

from __future__ import annotations

import fnmatch
import shutil
import sys
from types import SimpleNamespace

import open_clip
import pytest
import torch
import yaml
from conftest import changed, tiny_network, tiny_resdm
from huggingface_hub.errors import HFValidationError
from tiny_methods import PlainConfig, build, make_config, save_profile_model

from resdm.checkpoint import CheckpointError, load_model
from resdm.io import sha256, write_json
from resdm.layers.clip import text_tower
from resdm.settings import to_dict
from resdm_suite.apps import cli, hub
from resdm_suite.apps.hub import FILES, HubError, pull, push
from resdm_suite.apps.model_card import render
from resdm_suite.apps.model_folder import load_card
from resdm_suite.profiles import CentiloidConfig
from resdm_suite.records import write_record


def model_of(config, folder):
    made = save_profile_model(folder, build(config, "Plain"), config, "Plain")
    (made / "README.md").write_text(render(load_card(made)), encoding="utf-8")
    return made


@pytest.fixture
def folder(tmp_path):
    made = model_of(make_config(tmp_path), tmp_path / "model")
    for name in ("history.csv", "input_check.safetensors", "calibration.json"):
        (made / name).write_text("epoch\n1\n")
    audit = {"model": load_card(made).digest, "auc": 0.55, "auc_low": 0.45, "auc_high": 0.65}
    write_json(made / "memorisation.json", audit)
    for name in (".record.json", ".calibration.record.json"):  # as training and sampling leave them
        write_record(made, "resdm train tiny Plain", [made / "model.safetensors"], name=name)
    return made


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The Hub: ``upload_folder`` and ``snapshot_download`` as the library defines them, on disk."""
    calls = SimpleNamespace(root=tmp_path / "hub", private=None)

    class Api:
        def create_repo(self, repo_id, *, repo_type, private, exist_ok):
            assert repo_type == "model"
            calls.private = private
            (calls.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, repo_type, folder_path, allow_patterns, commit_message):
            shutil.copytree(
                folder_path, calls.root / repo_id, dirs_exist_ok=True,
                ignore=lambda _, names: [n for n in names if not any(fnmatch.fnmatch(n, p) for p in allow_patterns)],
            )  # fmt: skip
            return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")

    def snapshot_download(repo_id, *, revision, local_dir, allow_patterns):
        if not (calls.root / repo_id).is_dir():
            raise HFValidationError(f"{repo_id} not found\nmore of it")
        shutil.copytree(calls.root / repo_id, local_dir)  # unlike the library, without a filter
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        return str(local_dir)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return calls


def test_upload_and_download(folder, remote, tmp_path, capsys):
    assert cli.main(["model", "push", str(folder), "lab/resdm"]) == 0
    assert capsys.readouterr().out == "https://hub.example/lab/resdm/commit/1\n"
    assert remote.private is True
    there = remote.root / "lab" / "resdm"
    names = sorted(path.name for path in there.iterdir())
    files = ["README.md", "calibration.json", "config.yaml", "history.csv", "input_check.safetensors"]
    assert names == [*files, "memorisation.json", "model.safetensors"]  # no record of this machine
    assert cli.main(["model", "pull", "lab/resdm", str(tmp_path / "back")]) == 0
    for path in there.iterdir():
        assert sha256(tmp_path / "back" / path.name) == sha256(folder / path.name)
    assert load_card(tmp_path / "back").digest == load_card(folder).digest
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == names
    push(folder, "lab/resdm", private=False)
    assert remote.private is False


@pytest.mark.parametrize(("name", "message"), [
    ("state.pt", r"beside them state\.pt; the training is not finished"),
    ("sub-01_T1w.nii.gz", r"beside them sub-01_T1w\.nii\.gz; move the rest away"),
    ("more/x.bin", "beside them more/x.bin"),
    (None, r"no README\.md"),
])  # fmt: skip
def test_only_complete_model_folders_are_uploaded(folder, remote, name, message):
    if name is None:
        (folder / "README.md").unlink()
    else:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    with pytest.raises(CheckpointError, match=message):
        push(folder, "lab/resdm")
    assert not remote.root.exists()


def test_weights_that_hold_scans_of_real_people_are_not_uploaded(tmp_path, remote):
    network = tiny_network(linear_path=True)
    config = make_config(tmp_path, methods={"ResDM": tiny_resdm(network=network)}, shift_voxels=0, flip=False)
    made = save_profile_model(tmp_path / "model", build(config, "ResDM"), config, "ResDM")
    with pytest.raises(CheckpointError, match=r"weights of network\.linear_path hold images of the training people"):
        push(made, "lab/resdm")
    assert not remote.root.exists()


@pytest.mark.parametrize("changes", [
    {"cohort": {"folder": "/data/adni/secret", "tables": "/data/adni/tables"}, "fidelity": {"atlas": "aal"}},
    {"fidelity": {"atlas": "/data/adni/secret/atlas.nii"}},
    {"fidelity": {"centiloid": CentiloidConfig("/data/adni/secret/cortex.nii", "/data/cerebellum.nii")}},
])  # fmt: skip
def test_paths_of_this_machine_are_not_uploaded(tmp_path, remote, changes):
    config = changed(make_config(tmp_path), **changes)
    made = model_of(config, tmp_path / "model")
    push(made, "lab/resdm", accept_memorisation=True)
    text = (remote.root / "lab/resdm/config.yaml").read_text()
    assert "/data" not in text
    shared, of_data = yaml.safe_load(text), "cohort" in changes
    assert shared["cohort"]["folder"] == ("data" if of_data else config.cohort.folder)
    assert shared["cohort"]["kind"] == config.cohort.kind
    assert shared["fidelity"]["atlas"] == ("aal" if of_data else None)  # a name is no path
    assert load_card(pull("lab/resdm", tmp_path / "back")).digest == load_card(made).digest
    assert "/data/adni/secret" in (made / "config.yaml").read_text()  # the folder itself is unchanged


def test_a_download_must_be_a_model(folder, remote, tmp_path):
    with pytest.raises(HubError, match="lab/none: not downloaded \\(lab/none not found\\)"):
        pull("lab/none", tmp_path / "back")
    push(folder, "lab/resdm")
    there = remote.root / "lab" / "resdm"
    torch.save({"x": 1}, there / "state.pt")
    assert {path.name for path in pull("lab/resdm", tmp_path / "one").iterdir()} <= set(FILES)
    (there / "model.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(CheckpointError, match=r"lab/resdm: no model of resdm: .*not a model of resdm"):
        pull("lab/resdm", tmp_path / "two")
    (there / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors there"):
        pull("lab/resdm", tmp_path / "two")
    assert not (tmp_path / "two").exists()
    assert not list(tmp_path.glob(".pull-*"))
    with pytest.raises(CheckpointError, match="one: exists already"):
        pull("lab/resdm", tmp_path / "one")


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A model whose method is in a module that is not imported; importing it leaves a file."""
    (tmp_path / "code").mkdir()
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nfrom tiny_methods import Plain, PlainConfig\n"
    (tmp_path / "code" / "foreign_net.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "foreign_net", raising=False)
    config = make_config(tmp_path, methods={"Plain": PlainConfig(kind="foreign_net:Plain")})
    made = model_of(config, tmp_path / "foreign")
    (tmp_path / "ran").unlink()
    del sys.modules["foreign_net"]
    return made


def test_a_models_code_is_run_only_where_it_is_trusted(foreign, remote, tmp_path, capsys):
    shutil.copytree(foreign, remote.root / "lab" / "net")
    calls = ["model pull lab/net {}/pulled", "model show {}/foreign", "model push {}/foreign lab/other",
             "synthesise {}/x.nii.gz --model {}/foreign --out {}/out"]  # fmt: skip
    for call in calls:
        words = call.replace("{}", str(tmp_path)).split()
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert "kind is 'foreign_net:Plain', code that would run on this machine" in error
        assert "--trust-code" in error
        with pytest.raises(CheckpointError, match=r"model\.safetensors: kind is 'foreign_net:Plain', .*trust_code"):
            load_model(foreign)
        assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "pulled").exists()
    assert cli.main([*calls[0].replace("{}", str(tmp_path)).split(), "--trust-code"]) == 0
    assert (tmp_path / "ran").exists()
    assert type(load_model(foreign)).__name__ == "Plain"  # the program has imported the module now
    profile = tmp_path / "mine.yaml"
    profile.write_text(yaml.safe_dump(to_dict(load_card(foreign).config) | {"profile": "mine"}))
    capsys.readouterr()
    assert cli.main(["check", str(profile)]) == 0
    assert "method Plain: foreign_net:Plain (code of this module runs)\n" in capsys.readouterr().out


def test_clip_weights_that_cannot_be_downloaded_are_reported_in_one_line(tmp_path, monkeypatch, capsys):
    def create_model(*args, **options):
        raise RuntimeError("Failed to download weights\nmore")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(cli, "_summary", lambda config: text_tower("openai", torch.arange(3)))
    (tmp_path / "mine.yaml").write_text("cohort: {kind: phantom, phantom: {}}\n")
    assert cli.main(["check", str(tmp_path / "mine.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("resdm check: CLIP's weights cannot be downloaded (Failed to download weights); connect")
    assert error.count("\n") == 1


class ConnectError(Exception):
    """As the client raises it without a connection."""


@pytest.mark.parametrize(("error", "reason"), [
    (OSError("no token found"), "no token found"),
    (ConnectError("[Errno -2] Name or service not known\nmore"),
     "the Hub cannot be reached: [Errno -2] Name or service not known"),
])  # fmt: skip
def test_an_upload_that_fails_is_reported_in_one_line(folder, remote, monkeypatch, capsys, error, reason):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(hub.HfApi, "create_repo", refuse)
    assert cli.main(["model", "push", str(folder), "lab/resdm"]) == 2
    assert capsys.readouterr().err == f"resdm model push: lab/resdm: not uploaded ({reason})\n"
