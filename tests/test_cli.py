"""Commands: what they print, what they refuse and with which exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import ROOT
from filelock import FileLock
from tiny_methods import Sessions, build, make_config, save_profile_model

import resdm
from resdm.settings import check_person, to_dict
from resdm_suite import records
from resdm_suite.apps import cli
from resdm_suite.apps import single_scan as scans
from resdm_suite.apps.model_folder import load_card
from resdm_suite.profiles import load_config

FILES = ["amyloid", "tau", "mri", "amyloid_native", "tau_native", "suvr", "picture", "record"]


@pytest.fixture
def profile(tmp_path):
    """Path of a small valid profile."""
    path = tmp_path / "configs" / "small.yaml"
    path.parent.mkdir()
    tree = to_dict(make_config(tmp_path, kind="phantom"))
    path.write_text(yaml.safe_dump(tree | {"profile": "small"}, sort_keys=False))
    return path


@pytest.fixture
def scan(tmp_path):
    """A file in place of a T1."""
    path = tmp_path / "sub-07_T1w.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), path)
    return path


@pytest.fixture
def model(tmp_path):
    def make(kind):
        config = make_config(tmp_path, kind=kind)
        return save_profile_model(tmp_path / f"model-{kind}", build(config, "Plain"), config, "Plain")

    return make


@pytest.fixture
def preprocessed(monkeypatch):
    """Preprocessing, which is not what is tested here, gives random voxels on the model's grid."""
    seen = []

    def preprocess_mri(path, config):
        seen.append((path, config))
        return Sessions()[0][0][0].numpy(), {"transform": np.eye(4).tolist()}

    monkeypatch.setattr(scans, "preprocess_mri", preprocess_mri)
    monkeypatch.setattr(scans, "scan_montage", lambda mri, volumes, *args, **options: (volumes, args, options))

    def save_figure(figure, stem, provenance):
        seen.append((figure, provenance))
        path = Path(f"{stem}.png")
        path.write_bytes(b"PNG")
        return [path]

    monkeypatch.setattr(scans, "save_figure", save_figure)
    return seen


def test_version_and_check_start_without_heavy_packages(profile):
    """A command imports only the packages that it needs; `check` needs torch for the methods' settings."""
    code = (
        "import sys; from resdm_suite.apps.cli import main\n"
        f"codes = main(['version']), main(['check', {str(profile.with_name('plain.yaml'))!r}])\n"
        "heavy = [name for name in ('nilearn', 'open_clip', 'monai', 'SimpleITK') if name in sys.modules]\n"
        "print(codes, heavy)"
    )
    profile.with_name("plain.yaml").write_text("cohort: {kind: phantom, phantom: {people: 12}}\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == resdm.__version__
    assert lines[-1] == "(0, 0) []", done.stderr


def test_check_lists_the_settings_of_a_profile(profile, capsys):
    assert cli.main(["check", str(profile)]) == 0
    out = capsys.readouterr().out
    config = load_config(profile)
    assert f"profile small, digest {config.digest()}: valid (phantom data" in out
    assert "cohort phantom, grid 16 x 16 x 16 of 12 mm, seed 0" in out
    assert "method GAN: tiny_adversarial" in out
    assert f"not there yet: model Plain, {config.model('Plain') / 'model.safetensors'}" in out
    config.model("Plain").mkdir(parents=True)
    (config.model("Plain") / "model.safetensors").touch()
    cli.main(["check", str(profile)])
    assert "\nthere: model Plain" in capsys.readouterr().out


COMMANDS = ["check", "phantom", "manifest bids", "preprocess", "qc", "ceiling", "train", "predict"]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_bad_profile_or_method_is_refused_without_a_traceback(profile, words, capsys):
    if words in ("train", "predict"):
        assert cli.main([words, str(profile), "Plain", "Plane"]) == 2
        assert "no method 'Plane' (did you mean 'Plain'?); it has: Plain, GAN\n" in capsys.readouterr().err
    profile.write_text(profile.read_text() + "trainnig: 1\n")
    command = words.split()
    assert cli.main([*command, str(profile)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"resdm {command[0]}: {profile}: unknown key 'trainnig' (did you mean 'training'?)")
    assert "Traceback" not in error


@pytest.mark.parametrize("value", ["0", "-1", "-2", "many", "1.5", "", "18446744073709551616"])
@pytest.mark.parametrize(("words", "known"), [
    ("phantom --jobs", "1 -1"), ("preprocess --jobs", "1 -1"), ("manifest bids --jobs", "1"), ("cost --cores", "1"),
    ("synthesise x.nii --model m --out o --samples", "1"), ("synthesise x.nii --model m --out o --steps", "1"),
    ("synthesise x.nii --model m --out o --seed", "0 9223372036854775807"),
])  # fmt: skip
def test_numbers_have_a_range(words, known, value, capsys):
    for good in known.split():
        cli._parser().parse_args([*words.split(), good])
    if value not in known.split():
        with pytest.raises(SystemExit):
            cli.main([*words.split(), value])
        assert f"{value!r}: expected a whole number from {known[0]} to below" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "message"), [
    (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device; correct this and run"),
    (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied; correct this and run"),
    (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    (MemoryError("17 GiB"), "not enough memory (17 GiB); use a smaller grid or fewer --jobs"),
])  # fmt: skip
def test_an_error_of_the_system_is_one_line(profile, monkeypatch, capsys, error, message):
    def refuse(config):
        raise error

    monkeypatch.setattr(cli, "_summary", refuse)
    assert cli.main(["check", str(profile)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("resdm check: ")
    assert message in text
    assert text.count("\n") == 1


def test_settings_alone_are_valid_where_a_changed_input_made_files_stale(profile, capsys):
    """`make reproduce` starts with them: the workflow makes the files again, so they must not stop it."""
    config = load_config(profile)
    made = config.volumes / "index.csv"
    made.parent.mkdir(parents=True)
    made.write_text("person\n")
    config.manifest.write_text("person\n")
    records.write_record(config.volumes, "resdm preprocess small", [made], [config.manifest])
    config.manifest.write_text("person\nsub-1\n")
    assert cli.main(["check", str(profile)]) == 2
    assert "run `resdm preprocess small` again" in capsys.readouterr().err
    assert cli.main(["check", str(profile), "--settings"]) == 0


def test_output_that_nobody_reads_or_a_full_disk_takes(profile):
    """As `resdm check | true` and `resdm check > /dev/full`; at exit Python would complain of both."""
    profile.write_text("cohort: {kind: phantom, phantom: {}}\n")
    command = f"{sys.executable} -m resdm_suite.apps.cli check {profile}"
    options = {"shell": True, "executable": "/bin/bash", "capture_output": True, "text": True}
    options["env"] = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(f"{command} | true; echo ${{PIPESTATUS[0]}}", **options)
    assert (done.stdout, done.stderr) == ("141\n", "")
    if Path("/dev/full").exists():
        done = subprocess.run(f"{command} > /dev/full", **options)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "message"), [
    *((words, "") for words in ("", "dance", "manifest dicom", "predict --split tests", "model", "model show",
                                "model push folder", "synthesise x.nii.gz")),
    *((f"synthesise x.nii.gz --model m --out o {more}", "") for more in ("--age old", "--sex F --sex M", "--sex FM")),
    *((f"predict small --shard {shard}", "") for shard in ("0/2", "3/2", "2", "-1/2", "1/2/3", "a/b")),
    ("trian", "(did you mean 'train'?)"), ("synth x.nii.gz", "(did you mean 'synthesise'?)"),
    ("model shwo m", "(did you mean 'show'?)"), ("manifest bid", "(did you mean 'bids'?)"),
    *((words.format(name), f"{name}: expected user/name")
      for name in ("'resdm'", "'a/b/c'", "'/b'", "'a/'", "'a b/c'", "'https://hub/a/b'", "'../x'")
      for words in ("model push folder {}", "model pull {} folder")),
])  # fmt: skip
def test_arguments_that_make_no_sense(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(shlex.split(words))
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "sex"), [("F", "F"), ("f", "F"), ("female", "F"), ("m", "M"), ("Male", "M")])
def test_a_sex_is_a_letter_or_a_word_everywhere(text, sex, model, scan, preprocessed, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text(f"person,t1w,sex\nsub-1,{scan.name},{text}\n")
    arguments = ["--model", str(model("other")), "--samples", "1", "--quiet", "--out", str(tmp_path / "o")]
    assert cli.main(["synthesise", str(scan), "--sex", text, *arguments]) == 0
    assert cli.main(["synthesise", "--manifest", str(table), *arguments]) == 0
    prompts = [json.loads(path.read_text())["prompt"] for path in (tmp_path / "o").rglob("*_desc-synth_pet.json")]
    assert prompts == [{"age": None, "sex": sex}] * len(prompts) != []
    assert cli._parser().parse_args(["predict", "--condition", f"sex_{text}"]).condition == [f"sex_{sex}"]


def test_python_runs_the_command_and_a_shell_completes_it(tmp_path):
    environment = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    run = subprocess.run([sys.executable, "-m", "resdm", "--version"], **environment)
    assert run.stdout == f"{resdm.__version__}\n"
    if not shutil.which("bash"):
        pytest.skip("no bash")
    script = subprocess.run([sys.executable, "-m", "resdm", "completion", "bash"], **environment).stdout
    for words, completed in (("tr", "train"), ("model sh", "show"), ("train --q", "--quiet")):
        command = f"COMP_WORDS=(resdm {words}); COMP_CWORD=${{#COMP_WORDS[@]}}; COMP_CWORD=$((COMP_CWORD - 1))\n"
        command = f"{script}\n{command}_shtab_resdm; echo ${{COMPREPLY[@]}}"
        assert subprocess.run(["bash", "-c", command], **environment).stdout == f"{completed}\n"


def test_an_unexpected_error_shows_its_traceback(profile, monkeypatch, capsys):
    def broken(options):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(cli, "_summary", broken)
    assert cli.main(["check", str(profile)]) == 1
    assert "Traceback" in capsys.readouterr().err
    # A ValueError from inside a library is a fault of ours, not of the input; one raised on purpose is of the input.
    for call, code in (
        (lambda _: check_person([1], None, "x"), 1), (lambda _: int("12a"), 1), (lambda _: json.loads("{"), 1),
        (lambda _: check_person(1.0, None, "x"), 2),
    ):  # fmt: skip
        monkeypatch.setattr(cli, "_summary", call)
        assert cli.main(["check", str(profile)]) == code
    assert capsys.readouterr().err.endswith("resdm check: x: age 1.0 is outside 18–110 years\n")


def test_methods_and_conditions_reach_the_pipeline(profile, monkeypatch):
    calls = []
    for place in ("training.train_method", "synthesis.synthesise_method"):
        monkeypatch.setattr(f"resdm_suite.apps.{place}", lambda config, *names, **given: calls.append((*names, given)))
    assert cli.main(["train", str(profile)]) == 0
    assert cli.main(["train", str(profile), "GAN", "--quiet"]) == 0
    both = ["--condition", "no_age", "--condition", "factual"]
    assert cli.main(["predict", str(profile), "GAN", *both, "--split", "validation", "--shard", "2/3"]) == 0
    assert cli.main(["predict", str(profile), "Plain", "--quiet"]) == 0
    assert calls == [
        ("Plain", {"progress": True}), ("GAN", {"progress": True}), ("GAN", {"progress": False}),
        ("GAN", "no_age", {"split": "validation", "shard": (2, 3), "progress": True}),
        ("GAN", "factual", {"split": "validation", "shard": (2, 3), "progress": True}),
        ("Plain", "factual", {"split": "test", "shard": (1, 1), "progress": False}),
    ]  # fmt: skip


# ── one MRI ───────────────────────────────────────────────────────────────────────────────────────


def test_every_command_shows_an_example_that_it_accepts(capsys):
    for name, (_, example, _, _) in cli.COMMANDS.items():
        with pytest.raises(SystemExit) as done:
            cli.main([*name.split(), "--help"])
        assert done.value.code == 0
        assert f"Example: resdm {name}" in capsys.readouterr().out
        cli._parser().parse_args([*name.split(), *example.split()])


def test_synthesise_one_mri(model, scan, preprocessed, tmp_path, capsys):
    folder = model("other")
    arguments = ["--age", "74", "--sex", "F", "--model", str(folder), "--out", str(tmp_path / "o"), "--seed", "3"]
    assert cli.main(["synthesise", str(scan), *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith("synthetic, not for clinical use\n")
    written = dict(re.findall(r"^(\w+): (.*)$", out, flags=re.MULTILINE))
    assert list(written) == FILES
    assert re.search(r"\n\d+ s, peak memory \d\.\d\d GiB\n$", out)
    sidecar = json.loads(Path(written["amyloid"].replace(".nii.gz", ".json")).read_text())
    assert (sidecar["prompt"], sidecar["seed"]) == ({"age": 74.0, "sex": "F"}, 3)
    (path, config), ((volumes, _, options), _) = preprocessed
    assert (path, config) == (scan, load_card(folder).config)  # the model's preprocessing
    np.testing.assert_array_equal(3 * volumes["tau"], nib.load(written["tau"]).get_fdata(dtype=np.float32))  # SUVR
    assert options["notice"] == "synthetic, not for clinical use"


def test_a_phantom_model_needs_permission_and_marks_every_output(model, scan, preprocessed, tmp_path, capsys):
    arguments = ["synthesise", str(scan), "--model", str(model("phantom")), "--out", str(tmp_path / "o")]
    assert cli.main(arguments) == 2
    assert re.search("was trained on phantoms only.*--allow-phantom-model", capsys.readouterr().err)
    assert preprocessed == []  # refused before any work
    assert not (tmp_path / "o").exists()
    assert cli.main([*arguments, "--allow-phantom-model"]) == 0
    marked = "made by a phantom-trained model"
    assert marked in capsys.readouterr().out
    assert all(marked in json.loads(path.read_text())["notice"] for path in (tmp_path / "o").rglob("*_pet.json"))
    for path in (tmp_path / "o").rglob("*_pet.nii.gz"):
        assert marked.encode() in bytes(nib.load(path).header["descrip"])
    assert marked in preprocessed[1][0][2]["notice"]  # the picture


@pytest.mark.parametrize(("change", "message"), [
    ({"t1w": "nobody_T1w.nii.gz"}, "nobody_T1w.nii.gz: no such MRI"),
    ({"--age": "7"}, "prompt: age 7.0 is outside 18–110 years"),
    ({"--model": "nowhere"}, "nowhere: no such model folder; train the method first"),
])  # fmt: skip
def test_bad_input_of_one_mri(model, scan, preprocessed, tmp_path, capsys, change, message):
    options = {"--age": "74", "--model": str(model("other")), "--out": str(tmp_path / "o")} | change
    t1w = options.pop("t1w", str(scan))
    assert cli.main(["synthesise", t1w, *(part for item in options.items() for part in item)]) == 2
    assert message in capsys.readouterr().err
    assert preprocessed == []
    assert not (tmp_path / "o").exists()


def test_quiet_and_json(model, scan, preprocessed, tmp_path, capsys):
    arguments = ["synthesise", str(scan), "--model", str(model("phantom")), "--out", str(tmp_path / "o")]
    arguments += ["--allow-phantom-model", "--samples", "1"]
    assert cli.main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main([*arguments, "--json"]) == 0
    out, error = capsys.readouterr()
    output = json.loads(out)
    assert error == ""
    assert output["notice"].endswith("made by a phantom-trained model")
    assert list(output["files"]) == FILES
    assert output["peak_memory_bytes"] > 1e7


def test_a_table_of_scans_reports_its_failures_and_exits_with_2(model, scan, preprocessed, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text(f"person,t1w,age,sex\nsub-1,{scan.name},74,F\nsub-2,{scan.name},old,F\nsub-3,gone.nii.gz,70,M\n")
    arguments = ["synthesise", "--manifest", str(table), "--model", str(model("other")), "--out", str(tmp_path / "o")]
    assert cli.main([*arguments, "--quiet"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("resdm synthesise: 2 of 3 scans failed:\n")
    assert f"{table}, line 3: age 'old' is no number of years" in error
    assert "line 4: " in error
    assert "Traceback" not in error
    assert (tmp_path / "o" / "sub-1" / "sub-1_desc-synth_record.json").is_file()
    table.write_text(f"person,t1w,age,sex\nsub-1,{scan.name},74,F\nsub-2,{scan.name},71,F\n")
    count = len(preprocessed)
    assert cli.main([*arguments, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in output["scans"]] == ["kept", "done"]
    assert len(preprocessed) == count + 2  # one scan more, and its picture


def test_model_show_and_samples(model, tmp_path, capsys, profile, monkeypatch):
    assert cli.main(["model", "show", str(model("phantom"))]) == 0
    out = capsys.readouterr().out
    assert out.startswith("---\nlicense: mit\n")
    assert "phantoms, generated by the package itself" in out
    monkeypatch.setattr("resdm_suite.apps.synthesis.sample_method", lambda config, **options: (config.profile, options))
    assert cli.main(["sample", str(profile), "--quiet"]) == 0
    assert capsys.readouterr().out == "('small', {'progress': False})\n"


# ── manifests ─────────────────────────────────────────────────────────────────────────────────────


def test_manifest_prints_who_is_left_out_and_why(profile, tmp_path, capsys):
    table = tmp_path / "people.csv"
    rows = [f"sub-{i},ses-1,{60 + i},F,t1_{i}.nii,a_{i}.nii,18FAV45,{800 if i > 5 else 10}" for i in range(9)]
    table.write_text("person,session,age,sex,t1w,amyloid,amyloid_tracer,amyloid_days\n" + "\n".join(rows))
    for name in (f"{scan}_{i}.nii" for scan in ("t1", "a") for i in range(9)):
        (tmp_path / name).touch()
    assert cli.main(["manifest", "csv", str(profile), "--root", str(table)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"found +9 +9\n", out)
    assert re.search(r"kept +6 +6\n", out)
    assert "left out, PET more than 365 days from the T1: 3 (sub-6 ses-1, sub-7 ses-1, …)\n" in out
    config = load_config(profile)
    assert out.endswith(f"{config.manifest}\n")

    def stored():
        return {path: path.read_bytes() for path in config.work.glob("*.*") if path.is_file()}

    assert (config.work / "left_out.csv").read_text().count("\n") == 4
    (tmp_path / "a_1.nii").unlink()
    table.write_text(table.read_text().replace("18FAV45,10", "18FAV45,900", 1))
    before = stored()
    assert cli.main(["manifest", "csv", str(profile), "--root", str(table)]) == 2
    assert "a_1.nii" in capsys.readouterr().err
    assert before == stored()  # tables of the manifest that stays


@pytest.mark.parametrize(("words", "work"), [
    (["report"], "report"), (["manifest", "bids"], "manifest"), (["sample"], "sample ResDM"),
])  # fmt: skip
def test_stages_wait_for_another_process(profile, monkeypatch, words, work):
    lock, said = FileLock(load_config(profile).work / ".locks" / f"{work.replace(' ', '_')}.lock"), []
    Path(lock.lock_file).parent.mkdir(parents=True)
    lock.acquire()
    monkeypatch.setattr(records, "print", lambda text, file: (said.append(text), lock.release()), raising=False)
    assert cli.main([*words, str(profile)]) == 2  # there is nothing to list or to report
    assert [text.partition(" in ")[0] for text in said] == [f"{work}: another process is at work on it"]


@pytest.mark.parametrize(("words", "message"), [
    ("manifest bids {} --download", "--download fetches openneuro's data only; the source is bids"),
    ("manifest openneuro {} --url https://x", "--url is where --download fetches from"),
    ("manifest csv {} --tables t", "--tables are those of adni and bids; the source is csv"),
    ("synthesise --model m --out o", "expected either T1w.nii.gz or --manifest"),
    ("synthesise x.nii.gz --manifest t.csv --model m --out o", "expected either T1w.nii.gz or --manifest"),
    ("synthesise --manifest t.csv --model m --out o --age 70", "--age, --sex and --attribute are of one MRI"),
    ("model show {}", "resdm model show: "),
])  # fmt: skip
def test_options_that_would_be_ignored_and_a_folder_that_is_no_model_are_refused(profile, capsys, words, message):
    assert cli.main([word.format(profile) for word in words.split()]) == 2
    assert message in capsys.readouterr().err
