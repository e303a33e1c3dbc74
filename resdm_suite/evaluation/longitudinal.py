"""Change of the summary SUVR between visits of one person, in real and in synthetic PET."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.evaluation.agreement import agreement_table
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.evaluation.statistics import ends_of, interval, with_ends
from resdm_suite.evaluation.stored import SESSION
from resdm_suite.evaluation.suvr import summary_suvr
from resdm_suite.profiles import Config
from resdm_suite.records import read_csv

MIN_RANGE = 1e-3
"""SUVR a year: a source whose changes differ by less gives everyone the same change, so it has no correlation."""

NO_CHANGE, TRAINING = "template", "training"
"""Sources that are no method: the mean PET, which is the same at every visit, and real PET of the training people."""


def repeated_visits(config: Config, trainings: Iterable[str]) -> pd.DataFrame:
    """Summary SUVR at every visit of people with visits at several ages; ``trainings`` have predictions of test people.

    Columns are source (a training, `NO_CHANGE`, or `TRAINING`: training people), person, session, tracer, age (years),
    real and synthetic (SUVR; of `TRAINING` the mean PET's), planted (phantoms: the true SUVR, else NaN).
    """
    index = read_index(config, None)
    ages = index.groupby("person")["age"]
    visits = index[ages.transform("max") > ages.transform("min")]
    test, train = (visits[visits["split"] == split] for split in ("test", "train"))
    sources = [summary_suvr(config, name, test) for name in (*trainings, NO_CHANGE)]
    sources.append(summary_suvr(config, NO_CHANGE, train).assign(method=TRAINING))
    frame = pd.concat(sources, ignore_index=True).rename(columns={"method": "source"})
    frame = frame.merge(visits[[*SESSION, "age"]], on=SESSION)
    truth = config.work / "truth" / "people.csv"
    if config.cohort.kind != "phantom" or not truth.is_file():
        return frame.assign(planted=np.nan)
    wide = read_csv(truth, dtype=dict.fromkeys(SESSION, str)).rename(columns={f"{t}_suvr": t for t in TRACERS})
    planted = wide.melt(SESSION, list(TRACERS), "tracer", "planted")
    return frame.merge(planted, on=[*SESSION, "tracer"], how="left")


def compare_changes(values: pd.DataFrame, keys: Iterable[str], *, seed: int) -> pd.DataFrame:
    """Agreement of changes per year, by combinations of ``keys``.

    ``values`` has ``keys``, person, real (the reference change) and synthetic, SUVR a year; one row per person. The
    result is `agreement_table`, and with intervals (``_low``, ``_high``) the mean ``change``, the mean absolute
    ``error``, and ``gain``: the error of no change less it. r is NaN where the changes differ by less than `MIN_RANGE`.
    """
    keys, rows = list(keys), []
    for key, part in values.groupby(keys, sort=False):
        error, row = (part["synthetic"] - part["real"]).abs(), dict(zip(keys, key, strict=True))
        for name, one in {"change": part["synthetic"], "error": error, "gain": part["real"].abs() - error}.items():
            row |= with_ends(name, one.mean(), interval(one, part["person"], seed=seed))
        rows.append(row | {"range": part["synthetic"].max() - part["synthetic"].min()})
    if not rows:
        return pd.DataFrame(columns=keys)
    table = agreement_table(values, keys).merge(pd.DataFrame(rows), on=keys)
    table.loc[table.pop("range") < MIN_RANGE, ends_of("r")] = np.nan
    return table
