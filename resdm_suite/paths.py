"""File names, and the descriptions of data sets and images by BIDS-Derivatives, that several stages share."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from resdm import __version__
from resdm.io import stored_json, write_json, write_text

DESCRIPTION = "dataset_description.json"
"""Of a BIDS data set, in its root."""

SPACE = "MNI152NLin2009aSym"
"""BIDS name of the space of nilearn's MNI152 maps: its files are ``mni_icbm152_*_nlin_sym_09a``, and mirror images."""

REFERENCE = "https://www.bic.mni.mcgill.ca/~vfonov/icbm/2009/mni_icbm152_nlin_sym_09a_nifti.zip"
"""Their source, by nilearn's documentation of ``load_mni152_template``."""

INPUT_CHECK = "input_check.safetensors"
"""In a model folder: what T1s the model was trained on (`resdm_suite.preprocessing.input_check`)."""

CALIBRATION = "calibration.json"
"""In a model folder: intervals of regional SUVR (`resdm_suite.evaluation.intervals`)."""

MEMORISATION = "memorisation.json"
"""In a model folder: the audit of `resdm_suite.apps.memorisation`."""


def stem(image: str | Path) -> str:
    """Path of a NIfTI image without ``.nii`` or ``.nii.gz``."""
    return str(image).removesuffix(".gz").removesuffix(".nii")


def visible(folder: Path, pattern: str) -> list[Path]:
    """Sorted paths below a folder. Names that begin with a dot are ignored: what a killed writer left, ``._`` of macOS.

    See `resdm.io.atomic` for the former.
    """
    paths = sorted(folder.glob(pattern))
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def sidecar_path(image: str | Path) -> Path:
    """JSON sidecar beside a NIfTI image (``.nii`` or ``.nii.gz``)."""
    return Path(stem(image) + ".json")


def image_path(folder: str | Path, prefix: str, desc: str, tracer: str = "") -> Path:
    """Path in a data set of a T1 or, with a tracer's BIDS label, of a PET on a grid over `SPACE`.

    >>> image_path("out", "sub-1_ses-2_run-3", "synth", "18FAV45").as_posix()
    'out/sub-1/ses-2/pet/sub-1_ses-2_trc-18FAV45_run-3_space-MNI152NLin2009aSym_desc-synth_pet.nii.gz'
    """
    who, run, number = prefix.partition("_run-")
    kind, end = ("pet", f"_trc-{tracer}") if tracer else ("anat", "")
    name = f"{who}{end}{run}{number}_space-{SPACE}_desc-{desc}_{'pet' if tracer else 'T1w'}.nii.gz"
    return session_folder(folder, prefix) / kind / name


def session_folder(folder: str | Path, prefix: str) -> Path:
    """Folder of a session in a data set, by the entities at the start of its file names."""
    return Path(folder, *re.findall("(?:sub|ses)-[^_]+", prefix))


def entity(name: str, key: str) -> str:
    """Value of an entity in a file name, as ``18FAV45`` of ``trc``; empty where it is not there."""
    found = re.search(rf"_{key}-([A-Za-z0-9]+)_", name)
    return found[1] if found else ""


def synthetic_path(folder: str | Path, person: str, session: str, label: str) -> Path:
    """Synthetic PET of one session below a predictions folder."""
    return image_path(folder, f"{person}_{session}", "synth", label)


def std_path(mean: Path) -> Path:
    """Standard deviation over samples, beside the mean over samples."""
    return mean.with_name(mean.name.replace("_desc-synth_", "_desc-synthstd_"))


# ── BIDS-Derivatives ──────────────────────────────────────────────────────────────────────────────

NOT_ACQUIRED = {
    "Manufacturer": "none", "ManufacturersModelName": "none", "InjectedRadioactivity": 0,
    "InjectedRadioactivityUnits": "MBq", "InjectedMass": "n/a", "InjectedMassUnits": "n/a",
    "SpecificRadioactivity": "n/a", "SpecificRadioactivityUnits": "n/a", "ModeOfAdministration": "none",
    "TimeZero": "00:00:00", "ScanStart": 0, "InjectionStart": 0, "FrameTimesStart": [0], "FrameDuration": [0],
    "AcquisitionMode": "none", "ImageDecayCorrected": False, "ImageDecayCorrectionTime": 0, "ReconMethodName": "none",
    "ReconMethodParameterLabels": ["none"], "ReconMethodParameterUnits": ["none"], "ReconMethodParameterValues": [0],
    "ReconFilterType": "none", "ReconFilterSize": 0, "AttenuationCorrection": "none",
}  # fmt: skip
"""What BIDS requires of the acquisition of every PET, as it is for one that no scanner acquired."""

_NO_BIDS = (
    "*.csv", "*.npy", "*.npz", "*.png", "*.svg", "*.txt", "/cohort.json", "/timing*.json", "/template_*.nii.gz",
    "*_desc-preproc.json", "*_desc-synth_qc.json", "*_desc-synth_record.json",
)  # fmt: skip


_README = f"""Images are BIDS-Derivatives on a grid over {SPACE}, or in the space that
their names state. Units in the sidecar of an image states what its values are. Tables,
pictures and records of the suite, which are no BIDS files, are listed in .bidsignore.
"""


def bids_fields(units: str, masked: bool, tracer: str = "", *, sources: Iterable[str] = ()) -> dict[str, Any]:
    """Entries of the sidecar of an image that BIDS-Derivatives define; ``tracer`` is the BIDS label of a PET's.

    ``sources`` are URIs, see `bids_uri`.
    """
    fields = {"SpatialReference": REFERENCE, "SkullStripped": masked, "Units": units, "Sources": [*sources]}
    isotope = re.match("([0-9]+)([A-Z])", tracer)
    named = {"TracerName": tracer, "TracerRadionuclide": f"{isotope[2]}{isotope[1]}" if isotope else "n/a"}
    return {key: value for key, value in fields.items() if value != []} | (named if tracer else {})


def tools_of(folder: str | Path) -> list[dict[str, Any]]:
    """What made a data set: the entries of ``GeneratedBy``; empty where it states none in the form of BIDS."""
    made_by = (stored_json(Path(folder) / DESCRIPTION) or {}).get("GeneratedBy")
    return [tool for tool in made_by if isinstance(tool, dict)] if isinstance(made_by, list) else []


def write_description(
    folder: str | Path, name: str, command: str, links: Mapping[str, str | Path], *, synthetic: bool = True
) -> None:
    """Describe a folder of BIDS-Derivatives: what made it, from which data sets, and which files are no BIDS files.

    ``links`` maps names, as URIs ``bids:<name>:<file>`` use them, to folders. ``synthetic`` PET has no acquisition.
    """
    folder = Path(folder)
    version = {"Name": "resdm", "Version": __version__, "Description": command}
    description = {"Name": name, "BIDSVersion": "1.9.0", "DatasetType": "derivative", "GeneratedBy": [version]}
    description["DatasetLinks"] = {link: relative(place, folder) for link, place in links.items()}
    write_json(folder / DESCRIPTION, description)
    write_text(folder / "README", f"{name}\n\nWritten by `{command}` of resdm {__version__}. {_README}")
    write_text(folder / ".bidsignore", "".join(f"{pattern}\n" for pattern in _NO_BIDS))
    if synthetic:
        write_json(folder / "pet.json", NOT_ACQUIRED)


def bids_uri(file: str | Path, root: str | Path, link: str = "") -> str:
    """BIDS URI of a file of a data set; without ``link`` the data set that the URI stands in."""
    return f"bids:{link}:{relative(file, root)}"


def relative(path: str | Path, start: str | Path) -> str:
    """A path as seen from a folder, with slashes."""
    return Path(os.path.relpath(path, start)).as_posix()
