"""The pages of an evaluation of anyone's synthetic PET; notebook 17 computes the numbers."""

from __future__ import annotations

import pandas as pd

from resdm_suite.evaluation.statistics import ends_of
from resdm_suite.reporting import tables
from resdm_suite.reporting.diagnosis import NAMES

_SUVR = {"bias (SUVR)": "bias", "ICC(2,1)": "icc_agreement", "slope": "slope", "r": "r"}


def evaluation_pages(quality: pd.DataFrame, suvr: pd.DataFrame, status: pd.DataFrame) -> list[tables.Block]:
    """Image quality inside the brain, SUVR and status, each by tracer.

    Parameters
    ----------
    quality : DataFrame
        method, tracer, region, metric, mean, std, and the columns ``over_demographics_…`` of a comparison.
    suvr : DataFrame
        `resdm_suite.evaluation.agreement.agreement_table` by method and tracer, with regional_r and texture.
    status : DataFrame
        Rows of `resdm_suite.evaluation.status.status_summary` in %, with reading: ``summary`` or ``classifier``.
    """
    texts = quality.assign(text=tables.spread_texts(quality))
    texts["best"] = tables.is_best(quality, ["tracer", "region", "metric"], without=())
    ends = quality[[f"over_demographics_{end}" for end in ("difference", "difference_low", "difference_high", "p")]]
    texts["change"] = [tables.with_interval(*row[:3], p=row[3]) for row in ends.to_numpy()]
    cells = {"{}": "text", "Δ to demographics": "change"}
    blocks = []
    for tracer, part in texts[texts["region"] == "brain"].groupby("tracer", sort=False):
        title = f"Inside the brain: {tables.TRACER_NAMES[tracer]}"
        blocks.append(tables.pivot(part, "method", ["metric"], cells, title=title, best="best"))
    for tracer, part in suvr.groupby("tracer", sort=False):
        shown = {"Method": part["method"], "n": [f"{n:.0f}" for n in part["n"]]}
        for label, name in _SUVR.items():
            shown[label] = tables.interval_texts(part, ends_of(name))
        for label, name in {"r of regions": "regional_r", "texture": "texture"}.items():
            shown[label] = [tables.number(value, 2) for value in part[name]]
        blocks.append(tables.text_block(shown, f"SUVR of the cortical summary: {tables.TRACER_NAMES[tracer]}"))
    for tracer, part in status.groupby("tracer", sort=False):
        part = part.assign(text=tables.interval_texts(part, ["mean", "ci_low", "ci_high"], 1))
        title = f"{NAMES[tracer]}: {part['n'].iloc[0]} people, {part['positive'].iloc[0]} positive"
        names, columns = NAMES | {"summary": "Summary SUVR", "classifier": "Classifier"}, ["reading", "metric"]
        blocks.append(tables.pivot(part, "source", columns, {"{}": "text"}, title=title, head="Source", names=names))
    return blocks
