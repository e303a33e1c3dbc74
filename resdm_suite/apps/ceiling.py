"""Score the best estimate that a phantom's truth allows: the least expected squared error."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from resdm.io import remove, write_csv, write_json
from resdm_suite.anatomy import Grid
from resdm_suite.apps.model_folder import LABELS
from resdm_suite.apps.prediction import save_image, synthetic_sidecar
from resdm_suite.evaluation.image_quality import read_index, record_predictions, score_method
from resdm_suite.paths import sidecar_path, synthetic_path
from resdm_suite.preprocessing import ceiling
from resdm_suite.profiles import Config
from resdm_suite.records import NAME, alone

NOTICE = "uses the phantom's truth: no method can"


@alone("ceiling")
def synthesise_ceiling(config: Config | str | Path, *, progress: bool = True) -> Path:
    """Estimate and score the test participants' PET from MRI, prompt and truth; see `preprocessing.ceiling`.

    Returns
    -------
    Path
        ``predictions/ceiling/factual`` as `synthesise_method` writes it, and ``latent.csv``: person, session, tracer,
        positive (probability of the planted status). Beside it the estimates that use attributes too, of
        `Config.ceiling_conditions`.

    Raises
    ------
    ConfigError
        A cohort of real people.
    FileNotFoundError, ValueError
        No volumes; phantoms without their truth, or with that of others.
    """
    for condition, names in config.ceiling_conditions.items():
        _synthesise(config, condition, names, progress)
    return _synthesise(config, "factual", (), progress)


def _synthesise(config: Config, condition: str, known: Sequence[str], progress: bool) -> Path:
    """The ceiling from MRI, age, sex and the ``known`` attributes."""
    truth = ceiling.read_truth(config)
    people, out, grid = read_index(config), config.predictions("ceiling", condition), Grid.of(config.preprocess.grid)
    population, latent = ceiling.draw_population(config.seed), []
    remove(out / NAME)  # written again at the end
    for row in tqdm(people.to_dict("records"), desc=f"ceiling {condition}", unit="session", disable=not progress):
        for tracer, (pet, positive) in ceiling.expected_pet(config, row, population, truth, known).items():
            label = row[f"{tracer}_tracer"] if int(row[f"present_{tracer}"]) else LABELS[tracer]
            path = synthetic_path(out, row["person"], row["session"], label)
            save_image(path, grid.image(pet), NOTICE)
            prompt = {"age": row["age"], "sex": row["sex"]}
            head, sources = (config, "ceiling", NOTICE, tracer, label, prompt), [f"bids:volumes:{row['t1w']}"]
            sidecar = synthetic_sidecar(*head, sources=sources, condition=condition)
            write_json(sidecar_path(path), sidecar)
            who = {"person": row["person"], "session": row["session"], "tracer": tracer}
            latent.append(who | {"positive": positive})
    write_csv(out / "latent.csv", pd.DataFrame(latent), "%.6g")
    score_method(config, "ceiling", people, condition)
    record_predictions(config, out, "ceiling", f"resdm ceiling {config.profile}")
    return out
