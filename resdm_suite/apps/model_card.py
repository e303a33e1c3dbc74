"""The card of a model folder: ``README.md``, Markdown with the YAML head that the Hugging Face Hub reads.

Made by training itself, and again when the model's predictions are scored. It tells of its cohort in aggregate only: no
identifier, no row. The weights and their digest are not touched by it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from resdm.batch import TRACERS
from resdm.checkpoint import ModelCard, load_card
from resdm.io import write_text
from resdm.settings import SEXES
from resdm_suite.evaluation.image_quality import REGIONS, read_index, read_scores
from resdm_suite.evaluation.statistics import by_person
from resdm_suite.profiles import Config

CARD = "README.md"

_PHANTOM = "It has seen phantoms only: what it makes of a real MRI says nothing about the person."

_LICENCES: dict[str, dict[str, str]] = {
    "phantom": {"license": "mit"},
    "dlbs": {"license": "mit"},  # the data are CC0
    "adni": {
        "license": "other",
        "license_name": "adni-data-use-agreement",
        "license_link": "https://adni.loni.usc.edu/data-samples/adni-data/",
    },
}

_COHORTS = {
    "phantom": "phantoms, made by the package itself: no real person is among them",
    "dlbs": "Dallas Lifespan Brain Study (open)",
    "adni": "Alzheimer's Disease Neuroimaging Initiative",
}


def write_card(config: Config, name: str) -> Path:
    """Write ``README.md`` into the folder of a trained method, from what is on disk.

    Parameters
    ----------
    config : Config
        The profile; its ``volumes/index.csv`` gives the cohort, ``predictions/<name>/factual/scores.csv``, where there,
        the metrics.
    name : str
    """
    card = load_card(config.model(name))
    index = read_index(config, "train")
    scored = (config.predictions(name) / "scores.csv").is_file()
    scores = read_scores(config, [name]) if scored else None
    if scores is not None:  # of the test people alone, whatever else was scored there
        test = set(read_index(config, None).query("split == 'test'")["person"])
        scores = scores[scores["person"].isin(test)]
    timing = card.folder / "timing.json"
    cost = json.loads(timing.read_text(encoding="utf-8")) if timing.is_file() else {}
    return write_text(card.folder / CARD, render(card, index, scores, cost))


def render(
    card: ModelCard,
    index: pd.DataFrame | None = None,
    scores: pd.DataFrame | None = None,
    cost: dict[str, Any] | None = None,
) -> str:
    """A card's text.

    Parameters
    ----------
    card : ModelCard
    index : DataFrame, optional
        Training sessions: person, age, sex, present_amyloid, present_tau.
    scores : DataFrame, optional
        Rows of ``scores.csv`` of the test people.
    cost : dict, optional
        ``timing.json``.
    """
    config = card.config
    kind, grid = config.cohort.kind, config.preprocess.grid
    head = _LICENCES.get(kind, {"license": "other", "license_name": "see-the-cohort", "license_link": "LICENSE"}) | {
        "library_name": "resdm",
        "pipeline_tag": "image-to-image",
        "tags": ["medical", "neuroimaging", "mri", "pet", "amyloid", "tau", "synthetic", *["phantom"] * card.phantom],
    }
    shape = " × ".join(map(str, grid.shape))
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False).rstrip()}\n---",
        f"# {card.name}: amyloid and tau PET from T1-weighted MRI",
        f"**{card.notice[0].upper()}{card.notice[1:]}.**" + (f" {_sentence(config.notice)}" if config.notice else ""),
        f"Method `{card.settings.kind}` of the package `resdm`, profile `{config.profile}`, seed {config.seed}, "
        f"settings `{config.digest()}`, weights of step {card.step} (epoch {card.epoch}). It works on {shape} voxels "
        f"of {grid.voxel_mm:g} mm in MNI152 space. SHA-256 of `model.safetensors`: `{card.digest}`.",
        "## Training cohort",
        _cohort(kind, index),
        "## Intended use",
        "Research on image synthesis: comparing methods, studying what a prompt of age and sex changes, filling in for "
        "missing PET in method development. Not for diagnosis, treatment or any decision about a person.",
        "## Limits",
        _bullets(
            [
                *[_PHANTOM] * card.phantom,
                "A T1-weighted MRI does not show amyloid or tau; what is synthesised is what the training people's "
                "scans make likely, given the anatomy and the prompt.",
                "People unlike the training cohort in age, scanner, tracer or disease are outside what was tried.",
                "Tracers are those of the cohort; SUVRs are relative to its reference regions and scanners.",
                "No error and no amyloid or tau status comes with a PET: the spread over samples is no error, and no "
                "calibration on this cohort was shown to tell a person's status better than age and sex do.",
            ]
        ),
        "## Metrics",
        _metrics(scores),
        "## Use",
        "```\nresdm synthesise sub-01_T1w.nii.gz --age 74 --sex F --model FOLDER --out OUT"
        + (" --allow-phantom-model" if card.phantom else "")
        + "\n```",
    ]
    if cost:
        parts.insert(4, _cost(cost))
    return "\n\n".join(parts) + "\n"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _cost(cost: dict[str, Any]) -> str:
    return (
        f"{cost['parameters'] / 1e6:.2f} M parameters, of which {cost['trainable_parameters'] / 1e6:.2f} M trained, in "
        f"{cost['steps']} steps ({cost['epochs']:g} epochs)."
    )


def _cohort(kind: str, index: pd.DataFrame | None) -> str:
    lines = [f"Cohort: {_COHORTS.get(kind, kind)}."]
    if index is None:
        return "\n".join([*lines, "", "Its people are not described here."])
    people = index.drop_duplicates("person")  # first session: each person counts once
    sexes = ", ".join(f"{int((people['sex'] == sex).sum())} {sex}" for sex in SEXES)
    unknown = int(people["sex"].isna().sum())
    rows = [
        ("people", f"{len(people)}"),
        ("sessions", f"{len(index)}"),
        ("age at first session (years)", f"{people['age'].mean():.1f} ± {people['age'].std():.1f}"),
        ("sex", sexes + (f", {unknown} unknown" if unknown else "")),
    ]
    for tracer in TRACERS:
        with_it = index[index[f"present_{tracer}"] == 1]
        labels = with_it[f"{tracer}_tracer"].value_counts().sort_index()
        named = ", ".join(f"{count} {label}" for label, count in labels.items())
        rows.append((f"sessions with {tracer} PET", f"{len(with_it)}" + (f" ({named})" if named else "")))
    return "\n".join([*lines, "", "| training people | |", "|---|--:|", *(f"| {a} | {b} |" for a, b in rows)])


def _metrics(scores: pd.DataFrame | None) -> str:
    if scores is None or scores.empty:
        return "Its predictions are not scored yet."
    people = by_person(scores)
    lines = [
        f"Test people, mean ± standard deviation over them; intensities in [0, 1], n = {people['person'].nunique()}.",
        "",
        "| tracer | region | MAE (%) | PSNR (dB) | SSIM (%) |",
        "|---|---|--:|--:|--:|",
    ]
    for tracer in TRACERS:
        for region in REGIONS:
            part = people[(people["tracer"] == tracer) & (people["region"] == region)]
            if len(part):
                cells = [
                    f"{scale * part[metric].mean():.2f} ± {scale * part[metric].std():.2f}"
                    for metric, scale in (("mae", 100), ("psnr", 1), ("ssim", 100))
                ]
                lines.append(f"| {tracer} | {region} | {' | '.join(cells)} |")
    return "\n".join(lines)


def show(folder: str | Path) -> str:
    """The card of a model folder, checked against its weights, or one rendered from them where there is none.

    Raises
    ------
    CheckpointError
        No model folder.
    """
    card = load_card(folder)
    path = card.folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else render(card)
    if card.digest not in text:
        text += f"\nThe card is of other weights: those beside it have SHA-256 `{card.digest}`.\n"
    return text
