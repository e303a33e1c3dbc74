"""A folder with a web page that synthesises PET in the browser, by a model in ONNX: nothing leaves the machine.

The page needs onnxruntime-web and NiiVue. They are fetched from the npm registry as archives of fixed versions,
checked by the registry's SHA-512, and never part of this package.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from jinja2 import Environment, PackageLoader

from resdm.attributes import further
from resdm.batch import TRACERS
from resdm.checkpoint import CheckpointError
from resdm.io import atomic, write_json, write_text
from resdm.settings import AGE_RANGE
from resdm_suite.anatomy import mni_map
from resdm_suite.apps.hub import check_memorisation
from resdm_suite.apps.onnx_model import export_onnx, prompt_parts
from resdm_suite.apps.prediction import Model, sampling_steps, with_notice
from resdm_suite.apps.single_scan import SAMPLES
from resdm_suite.cohorts.readers.download import DownloadError, Remote, fetch
from resdm_suite.paths import SPACE
from resdm_suite.preprocessing.t1 import MIN_TEMPLATE_CORRELATION
from resdm_suite.reporting.style import TRACER_TITLES

REGISTRY = "https://registry.npmjs.org"
"""Of npm packages; NPM_CONFIG_REGISTRY names a mirror, as for npm itself."""

POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'"
)
"""The page's Content-Security-Policy: no other address; ``wasm-unsafe-eval`` permits WebAssembly, and no eval."""


class Package(NamedTuple):
    """An npm package: size and SHA-512 (base64) of its archive, its licence, and the files that the page needs."""

    name: str
    version: str
    bytes: int
    sha512: str
    licence: str
    files: tuple[str, ...]

    @property
    def archive(self) -> str:
        """Name that `npm pack` gives the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def url(self) -> str:
        """Of the archive in the registry."""
        registry = os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY).rstrip("/")
        return f"{registry}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


PACKAGES = (
    Package(
        "onnxruntime-web", "1.30.0", 33106585,
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==", "MIT",
        ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    ),
    Package(
        "@niivue/niivue", "0.69.0", 6809390,
        "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA==", "BSD-2-Clause",
        ("dist/niivue.umd.js",),
    ),
)  # fmt: skip


def write_page(
    model: str | Path,
    out: str | Path,
    *,
    assets: str | Path | None = None,
    trust_code: bool = False,
    accept_memorisation: bool = False,
    progress: bool = True,
) -> str:
    """Write a folder that any web server can serve; returns how to open it.

    Parameters
    ----------
    model : path
        Model folder of a residual diffusion.
    out : path
        Gets ``index.html``, ``model.onnx``, the libraries and what belongs to them.
    assets : path, optional
        Folder of the libraries' archives, by default ``work/npm``. What is missing there is downloaded into it.
    trust_code : bool
        As in `resdm.load_model`.
    accept_memorisation : bool
        Whether to write a page with a model that `resdm_suite.apps.hub.check_memorisation` refuses: the page contains
        the model.

    Raises
    ------
    CheckpointError
        A model that cannot be used, is not to be shared, or was trained on one tracer: the page shows both.
    DownloadError
        The libraries are not there and cannot be fetched, or an archive is not the expected one.
    """
    out, loaded = Path(out), Model.load(model, "cpu", trust_code=trust_code)
    if not accept_memorisation:
        check_memorisation(loaded.card)
    if absent := ", ".join(sorted(set(TRACERS) - set(loaded.card.labels))):
        raise CheckpointError(f"{model}: trained without {absent} PET, and the page shows both; use resdm synthesise")
    export_onnx(loaded, out / "model.onnx")  # before the download: it refuses other methods
    archives = fetch_packages(Path(assets or "work/npm"), progress=progress)
    for package, archive in archives.items():
        _extract(package, archive, out)
    write_json(out / "page.json", page_settings(loaded))
    inside = mni_map("brain", loaded.grid)
    template = np.where(inside, np.clip(np.rint(255 * mni_map("t1", loaded.grid)), 1, 255), 0).astype(np.uint8)
    with atomic(out / "brain.bin") as temporary:
        temporary.write_bytes(template.tobytes("F"))  # x fastest, as in a NIfTI file
    templates = Environment(loader=PackageLoader("resdm_suite.reporting"), autoescape=True, trim_blocks=True)
    write_text(out / "index.html", templates.get_template("browser_page.html.j2").render(_texts(loaded)))
    source = templates.loader.get_source
    write_text(out / "page.js", source(templates, "browser_page.js")[0])
    write_text(out / "page.css", source(templates, "page.css")[0] + source(templates, "browser_page.css")[0])
    return (
        f"{out / 'index.html'}: {loaded.card.notice}\nserve the folder and open http://127.0.0.1:8000:\n"
        f"  python -m http.server --bind 127.0.0.1 --directory {out} 8000"
    )


def fetch_packages(folder: Path, *, progress: bool = True) -> dict[Package, Path]:
    """Archives of `PACKAGES` in a folder; those that are missing are downloaded, and all are checked.

    Raises `DownloadError` without network, or for another archive than the expected one.
    """
    paths = {package: folder / package.archive for package in PACKAGES}
    try:
        fetch([Remote(package.url, path, package.bytes) for package, path in paths.items()], progress=progress)
    except DownloadError as error:
        names = " ".join(f"{package.name}@{package.version}" for package in PACKAGES)
        raise DownloadError(
            f"{error}\nwithout network: run `npm pack {names}` on another machine, and give the folder of the archives "
            "as --assets"
        ) from None
    for package, path in paths.items():
        with open(path, "rb") as stream:
            found = base64.b64encode(hashlib.file_digest(stream, "sha512").digest()).decode()
        if found != package.sha512:
            raise DownloadError(
                f"{path}: SHA-512 {found}, expected {package.sha512}: not {package.name} {package.version} as "
                "published; delete it and run the same command again"
            )
    return paths


def _extract(package: Package, archive: Path, out: Path) -> None:
    with tarfile.open(archive) as files:
        for name in package.files:
            with atomic(out / Path(name).name) as temporary, open(temporary, "wb") as target:
                shutil.copyfileobj(files.extractfile(f"package/{name}"), target)


def page_settings(model: Model) -> dict[str, Any]:
    """What ``page.js`` reads: grid, checks, spelling of prompts, and of each PET its header, window and sidecar."""
    card, preprocess, tracers = model.card, model.card.config.preprocess, []
    extra = {"condition": "factual", "seed": card.config.seed, "steps": 1, "samples": 1}
    for tracer in TRACERS:
        volume, entries = model.to_suvr(np.zeros(model.grid.shape, np.float32), tracer)
        image = with_notice(model.grid.image(volume.astype(np.float32)), card.notice)
        tracers.append({
            "name": tracer, "label": card.labels[tracer], "range": [*preprocess.pet_range[tracer]],
            "header": base64.b64encode(_header(image)).decode(),
            "sidecar": model.sidecar(tracer, card.labels[tracer], {"age": None, "sex": None}, **extra) | entries,
        })  # fmt: skip
    checks = {"masked": preprocess.mask, "least_correlation": MIN_TEMPLATE_CORRELATION}
    grid = {"shape": [*model.grid.shape], "affine": model.grid.affine.tolist(), "space": SPACE}
    return grid | checks | prompt_parts(model.method.prior) | {"tracers": tracers}


def _header(image: nib.Nifti1Image) -> bytes:
    """The bytes before the voxels of a NIfTI file."""
    content = image.to_bytes()
    return content[: len(content) - image.get_data_dtype().itemsize * int(np.prod(image.shape))]


def _texts(model: Model) -> dict[str, Any]:
    """Values of the page's template."""
    card, preprocess = model.card, model.card.config.preprocess
    usual, more = sampling_steps(card), further(card.settings.prior.fields)
    return {
        "policy": POLICY,
        "notice": card.notice,
        "phantom": card.phantom,
        "shape": model.grid.shape,
        "voxel_mm": model.grid.voxel_mm,
        "masked": preprocess.mask,
        "ages": AGE_RANGE,
        "fields": card.settings.prior.fields,
        "unit": preprocess.pet_unit,
        "tracers": [
            {"name": tracer, "title": TRACER_TITLES[tracer], "range": ends}
            for tracer, ends in preprocess.pet_range.items()
        ],
        "facts": [
            ("Model", card.name), ("Profile", card.config.profile), ("Trained on", card.config.notice or "real people"),
            ("SHA-256", card.digest[:16]), *[("Left out of the prompt", ", ".join(more))] * bool(more),
        ],
        "sampling": f"Each PET is one sample in one step, from the noise of seed {card.config.seed}, as by resdm "
        f"synthesise --steps 1 --samples 1. By default that command takes {usual} step{'s' * (usual != 1)} and the "
        f"mean of {SAMPLES} samples, so its PETs differ.",
        "packages": PACKAGES,
    }  # fmt: skip
