"""Did a model memorise its training people? Membership inference by its errors, and nearest training people.

Membership inference (Yeom et al. 2018): someone who has a person's MRI and PET synthesises the PET and calls the person
a training person if the error is small. The AUC of this attack is 0.5 for a model whose error is the same for everyone.
A model that fits its training people closely has a higher one, whether it memorises them or only fits too well.

Nearest training person: the output of a model that copies is close to the real PET of one training person. For the MRI
of a training person this is more often the person's own PET than for the MRI of another person.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from resdm_suite.evaluation.classification import auc
from resdm_suite.evaluation.statistics import percentile_interval, person_resamples, with_ends

LIMIT = 0.8
"""Lower end of the AUC's 95 % interval above which a model is shared with ``--accept-memorisation`` only.

For normally distributed errors this is a distance of 1.2 standard deviations between training and other people: with
equal numbers of both, the attacker is right in 72 % of cases, and an AUC of 0.5 would be 50 %. The limit was set when
the default model's value was known, so that it is not refused proves nothing.
"""


def memorisation(people: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """Membership inference and distances, over people.

    Parameters
    ----------
    people : DataFrame
        One row per person: person, member (of the training people), error (mean absolute, brain, over tracers),
        nearest (distance to the nearest training PET), own (share of tracers whose synthetic PET is nearer to the
        person's real PET than to that of any other training person).
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``training`` and ``other`` (people), ``auc`` with ``auc_low`` and ``auc_high`` (95 %, over people),
        ``error_…``, ``nearest_…`` and ``own_…`` of both groups (means).
    """
    member, score = people["member"].to_numpy(int), -people["error"].to_numpy()
    draws = auc(member, score, person_resamples(people["person"], seed=seed))
    groups = people.groupby(people["member"].map({True: "training", False: "other"}))
    found = {name: len(part) for name, part in groups}
    found |= with_ends("auc", float(auc(member, score, np.ones(len(people)))), percentile_interval(draws))
    means = {
        f"{what}_{name}": float(part[what].mean()) for name, part in groups for what in ("error", "nearest", "own")
    }
    return found | means
