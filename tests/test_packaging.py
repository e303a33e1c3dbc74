"""The wheel: both packages, the profiles and the templates, enough to work outside a checkout."""

from __future__ import annotations

import shutil
import zipfile

import pytest
from conftest import ROOT, git_files, run

from resdm_suite.profiles import load_config


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout's tracked and new files, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    parts = ("resdm/", "resdm_suite/", "configs/", "notebooks/", "pyproject.toml", "README.md", "LICENSE")
    for name in git_files(ROOT, "-co", "--exclude-standard"):
        if name.startswith(parts):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    run("python", "-m", "pip", "wheel", *options, "-w", folder, folder / "source", cwd=folder, PYTHONPATH="")
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_module_template_and_profile(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path for name in ("resdm", "resdm_suite") for path in (ROOT / name).rglob("*") if path.is_file()}
    files = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert files - names == set()
    profiles = {f"resdm_suite/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    kernel = "resdm_suite/configs/jupyter/kernels/resdm/kernel.json"
    assert profiles | {"resdm_suite/notebooks/17_evaluate.ipynb", kernel} <= names
    assert not any(name.startswith(("tests/", "configs/", "notebooks/")) for name in names)


PROFILE = """
cohort: { kind: phantom, phantom: { people: 1, anatomy_mm: 4, t1_voxel_mm: [4, 4, 4], pet_voxel_mm: [6, 6, 6] } }
preprocess: { grid: { shape: [16, 16, 16], voxel_mm: 12 }, registration_mm: 8, n4: false }
evaluation: { status: { pool: 1 } }
methods: { linear: { kind: linear } }
"""


def test_an_installed_package_works_in_an_empty_folder(wheel, tmp_path):
    """Check, phantoms, a synthesis with a model and a report: profiles and templates are found in the package."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    here = tmp_path / "empty"
    here.mkdir()
    (here / "mini.yaml").write_text(PROFILE)
    code = (
        "import resdm_suite; from resdm_suite.apps.cli import main; print(resdm_suite.__file__)\n"
        "from pathlib import Path; from resdm.method import build_method\n"
        "from resdm.checkpoint import save_model; from resdm_suite.apps import model_folder as models\n"
        "from resdm_suite.profiles import load_config\n"
        "config = load_config('mini.yaml'); linear = build_method(config.method('linear'), (16, 16, 16))\n"
        "folder = models.write_config(config.model('linear'), config, 'linear')\n"
        "model = str(save_model(folder, linear, name='linear', source=models.source_settings(config)))\n"
        "codes = main(['check', 'phantom']), main(['check', 'fantom']), main(['phantom', 'mini.yaml', '--quiet'])\n"
        "t1 = str(next(config.source_root.rglob('*_T1w.nii.gz')))\n"
        "options = ['--model', model, '--out', 'out', '--allow-phantom-model', '--samples', '1', '--quiet']\n"
        "codes += main(['synthesise', t1, *options]), main(['report', 'mini.yaml']), main(['model', 'show', model])\n"
        "codes += main(['init', 'study', '--from', 'dlbs', '--source', 'bids']), main(['check', 'study'])\n"
        "print(*codes)"
    )
    done = run("python", "-c", code, cwd=here, PYTHONPATH=str(tmp_path / "installed"))
    first, *lines = done.stdout.splitlines()
    assert first.startswith(str(tmp_path)), done.stderr
    assert f"digest {load_config(ROOT / 'configs' / 'phantom.yaml').digest()}: valid" in done.stdout
    assert f"not there yet: manifest, {here / 'work' / 'phantom' / 'manifest.csv'}" in lines
    assert lines[-1] == "0 2 0 0 0 0 0 0", done.stderr
    assert f"not there yet: data, {here / 'work' / 'study' / 'bids'}" in lines
    assert "next: put the bids data there, or give their place as cohort.folder of the profile" in lines
    assert len(list((here / "out").rglob("*_pet.nii.gz"))) == 4
    assert (here / "work" / "mini" / "report" / "index.html").is_file()
    assert "there are: adni, dlbs, phantom" in done.stderr
