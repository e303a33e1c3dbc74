"""File names, and the description of a data set, that several stages share."""

from pathlib import Path

from resdm.io import write_json

INPUT_CHECK = "input_check.safetensors"
"""In a model folder: what T1s the model was trained on (`resdm_suite.preprocessing.input_check`)."""

CALIBRATION = "calibration.json"
"""In a model folder: intervals of regional SUVR (`resdm_suite.evaluation.intervals`)."""

MEMORISATION = "memorisation.json"
"""In a model folder: the audit of `resdm_suite.apps.memorisation`."""


def stem(image: str | Path) -> str:
    """Path of a NIfTI image without ``.nii`` or ``.nii.gz``."""
    return str(image).removesuffix(".gz").removesuffix(".nii")


def sidecar_path(image: str | Path) -> Path:
    """JSON sidecar beside a NIfTI image (``.nii`` or ``.nii.gz``)."""
    return Path(stem(image) + ".json")


def synthetic_name(prefix: str, label: str) -> str:
    """File name of a synthetic PET: ``prefix`` is ``sub-1_ses-2``, ``label`` the tracer's (``18FAV45``)."""
    return f"{prefix}_trc-{label}_space-MNI152_desc-synth_pet.nii.gz"


def synthetic_path(folder: str | Path, person: str, session: str, label: str) -> Path:
    """Synthetic PET of one session below a predictions folder."""
    return Path(folder) / person / session / "pet" / synthetic_name(f"{person}_{session}", label)


def std_path(mean: Path) -> Path:
    """Standard deviation over samples, beside the mean over samples."""
    return mean.with_name(mean.name.replace("_desc-synth_", "_desc-synthstd_"))


def write_description(folder: str | Path, name: str, command: str) -> None:
    """Write ``dataset_description.json`` of the BIDS derivatives that a command makes."""
    description = {"Name": name, "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
    write_json(Path(folder) / "dataset_description.json", description | {"GeneratedBy": [{"Name": command}]})
