"""Train a method of a profile on its preprocessed cohort."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from resdm.checkpoint import load_model
from resdm.cpu_runtime import set_up
from resdm.io import remove, write_json
from resdm.method import build_method
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.apps.model_card import write_card
from resdm_suite.apps.model_folder import PROVENANCE, check_unchanged, tracer_scans, training_options, write_config
from resdm_suite.evaluation.image_quality import psnr, ssim
from resdm_suite.paths import INPUT_CHECK
from resdm_suite.preprocessing import input_check
from resdm_suite.preprocessing.dataset import CohortDataset, collate
from resdm_suite.profiles import Config
from resdm_suite.records import NAME, alone, read_json, write_record
from resdm_suite.reporting.provenance import provenance


def validation_score(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Whole-volume PSNR + 10 · SSIM: the released code selects its best weights by this score.

    Outside ``mask`` (X, Y, Z) the synthetic volume is set to 0, as in the stored predictions.
    """
    if mask is not None:
        synthetic = np.where(mask, synthetic, np.float32(0))
    return psnr(real, synthetic) + 10 * ssim(real, synthetic)[0]


@alone("train {name}")
def train_method(config: Config | str | Path, name: str, *, progress: bool = True) -> Path:
    """Train a method of a profile, or continue an interrupted training.

    Returns
    -------
    Path
        The model folder, see `resdm.training.train`, with ``provenance.json``, ``input_check.safetensors`` (where the
        cohort is large enough) and the model card ``README.md``.
    """
    from resdm.training import train  # here: Lightning Fabric needs two seconds

    settings, seeded = config.method(name), config.seeded(name)
    folder, results = config.model(name), ("model.safetensors", "history.csv", "timing.json")
    if finished := (folder / results[0]).is_file():
        check_unchanged(folder, results)
    else:
        remove(folder / NAME)  # of an earlier training
    validation_set = CohortDataset(seeded, "validation")  # first: faults of the data show before weights load
    set_up(config.training)
    torch.manual_seed(seeded.seed)  # of the initial weights
    method = build_method(settings, config.preprocess.grid.shape)
    train_set = CohortDataset(seeded, "train", augment=not method.closed_form)
    digest = read_json(config.volumes / "cohort.json")["digest"]
    mask = mni_map("brain", Grid.of(config.preprocess.grid)) if config.preprocess.mask else None
    data = {"train_set": train_set, "validation_set": validation_set, "collate": collate, "data_digest": digest}
    options = training_options(config, name) | {"score": partial(validation_score, mask=mask), "progress": progress}
    train(method, folder=folder, **data, **options)
    if finished:
        load_model(folder, trust_code=True)  # of the same settings; an older version may have written other weights
    write_config(folder, config, name)
    remove(folder / INPUT_CHECK)  # of other people
    if check := input_check.of_cohort(config):
        check.save(folder)
    device = read_json(folder / "timing.json")["device"]
    extra = {"method": name, "scans": tracer_scans(train_set.index)}
    write_json(folder / PROVENANCE, provenance(config, [config.volumes / "index.csv"], device=device, **extra))
    files = (*results, "config.yaml", PROVENANCE, INPUT_CHECK)
    volumes = [config.volumes / file for file in ("index.csv", "cohort.json")]
    write_record(folder, f"resdm train {config.profile} {name}", [folder / file for file in files], volumes)
    write_card(config, name)
    remove(folder / "state.pt")  # last: until here, an interrupted job continues from it
    return folder
