"""Audit of a trained model before it is shared: whether it memorised its training people.

`audit_method` writes ``memorisation.json`` beside the weights and the result into the model card; `hub.push` reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from resdm.io import write_json
from resdm.settings import derive_seed
from resdm_suite.anatomy import mni_map
from resdm_suite.apps.model_card import write_card
from resdm_suite.apps.prediction import Model
from resdm_suite.evaluation.memorisation import memorisation
from resdm_suite.paths import MEMORISATION
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.profiles import Config
from resdm_suite.records import NAME, alone, write_record

PEOPLE = 100
"""Training people, and other people, at most: enough for an interval of the AUC of ±0.07."""


@alone("audit {name}")
def audit_method(config: Config | str | Path, name: str, *, progress: bool = True) -> Path:
    """Synthesise training, validation and test people, and write the audit of their errors: ``memorisation.json``.

    One session of at most `PEOPLE` people of each kind, drawn by the profile's seed. Nothing of a person is stored.
    """
    model = Model.of_profile(config, name)
    card = model.card
    train, brain = CohortDataset(config, "train"), mni_map("brain", model.grid)
    draw = np.random.default_rng(config.seed)
    members = [(train, i) for i in draw.permutation(_first_sessions(train))[:PEOPLE]]
    held_out = [CohortDataset(config, split) for split in ("test", "validation")]
    others = [(data, i) for data in held_out for i in _first_sessions(data)]
    others = [others[i] for i in draw.permutation(len(others))[:PEOPLE]]
    people = train.index["person"].iloc[[i for _, i in members]].to_numpy()
    items = [train[i] for _, i in members]
    real = np.stack([item["volumes"][1:].numpy()[:, brain] for item in items])  # (M, 2, V)
    present = np.stack([item["present"].numpy() for item in items])  # (M, 2)
    rows = []
    for data, i in tqdm([*members, *others], desc=f"{name} audit", unit="person", disable=not progress):
        row, item = data.index.iloc[i], data[i]
        seed = derive_seed(config.seeded(name).seed, row["person"], row["session"])
        prompt = {"age": item["age"], "sex": item["sex"], "more": item["attributes"]}
        pet = model.synthesise(item["volumes"][0].numpy(), **prompt, seed=seed)[:, brain]
        truth, others_than = item["volumes"][1:].numpy()[:, brain], people != row["person"]
        found = [
            _distances(
                pet[channel], truth[channel], real[present[:, channel], channel], others_than[present[:, channel]]
            )
            for channel in np.flatnonzero(item["present"])
        ]
        rows.append({"person": row["person"], "member": data is train} | pd.DataFrame(found).mean().to_dict())
    found = {"model": card.digest, "profile": config.profile, **memorisation(pd.DataFrame(rows), seed=config.seed)}
    path = card.folder / MEMORISATION
    write_json(path, {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items()})
    inputs = [card.folder / "model.safetensors", config.volumes / "index.csv"]
    write_record(card.folder, f"resdm audit {config.profile} {name}", [path], inputs, name=f".{path.stem}{NAME}")
    write_card(config, name)
    return path


def _first_sessions(data: CohortDataset) -> np.ndarray:
    return np.flatnonzero(~data.index["person"].duplicated())


def _distances(pet: np.ndarray, truth: np.ndarray, real: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Error of a synthetic PET (V,) and its distances to PETs of training people (M, V); ``other``: than the person."""
    own, distance = (np.sqrt(np.mean((volumes - pet) ** 2, axis=-1)) for volumes in (truth, real))
    nearer = own < distance[other].min(initial=np.inf)
    return {"error": np.abs(pet - truth).mean(), "nearest": distance.min(initial=np.inf), "own": float(nearer)}
