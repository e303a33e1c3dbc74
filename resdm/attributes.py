"""Further attributes of a person in the prompt: any column of the manifest, a number or a category.

An addition of this suite: the paper's prompt names age and sex. ``prior.fields`` (and ``fields`` of the linear
controls) name the columns. The accepted values come from the training people and are stored with the weights: for a
number the range of the prompts in pretraining, for a category the values that at least five people have.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from resdm.batch import Prior
from resdm.settings import AGE_RANGE, PROMPT_FIELDS, SEXES, TRACERS, derive_seed, further

PHRASES = {
    "education": "{} years of education",
    "mmse": "an MMSE score of {}",
    "diagnosis": "a diagnosis of {}",
    "apoe4": "APOE ε4 {}",
    "plasma": "a plasma marker of {}",
    "earlier_centiloid": "{} Centiloid at an earlier visit",
}
"""How the sentence states a field; another field is stated by its name, as in ``"waist 92"``."""

MIN_PEOPLE = 5
"""Fewest training people of an accepted category. Rarer ones cannot be fitted, and may identify a person."""

Known = Mapping[str, list[Any]]
"""Field → [lowest, highest, step] of a number (step 1: whole numbers, 0: any), or the names of the categories."""


def number_text(value: float) -> str:
    """A number with three significant digits and no exponent.

    >>> number_text(0.8251), number_text(16.0), number_text(1234.0), number_text(2.5e-7)
    ('0.825', '16', '1230', '0.00000025')
    """
    return f"{Decimal(f'{value:.3g}'):f}"


def phrase(name: str, value: float | str) -> str:
    """How the prompt states an attribute.

    >>> phrase("education", 16.0), phrase("waist", 92.5), phrase("diagnosis", "MCI")
    ('16 years of education', 'waist 92.5', 'a diagnosis of MCI')
    """
    text = value if isinstance(value, str) else number_text(value)
    return PHRASES.get(name, name.replace("_", " ") + " {}").format(text)


def clause(values: Mapping[str, float | str | None]) -> str:
    """The end of the sentence: ``" with …, …"``, or nothing where no value is known."""
    parts = ", ".join(phrase(name, value) for name, value in values.items() if value is not None)
    return f" with {parts}" if parts else ""


def learn(fields: Iterable[str], prior: Prior, people: Sequence[Any] = ()) -> Known:
    """What is known of the further ``fields`` from training sessions, of a person each unless ``people`` names them.

    Of a number, the range from the 2nd to the 98th percentile and a quarter of it on either side, with three
    significant digits: no bound is taken from one person.

    Raises
    ------
    ValueError
        A field without values, with one value only, or without two categories of `MIN_PEOPLE` people.
    """
    known: dict[str, list[Any]] = {}
    for name in further(fields):
        rows = zip(prior.values(name), people or range(len(prior)), strict=True)
        stated = [(value, person) for value, person in rows if value is not None]
        values = [value for value, _ in stated]
        fault = f"fields: {name!r} of the training people"
        remedy = "leave the field out, or complete the column in the source's tables and run `resdm manifest` again"
        if any(isinstance(value, str) for value in values):
            counts = Counter(value for value, _ in {(str(value), person) for value, person in stated})
            known[name] = sorted(value for value, n in counts.items() if n >= MIN_PEOPLE)
            if len(known[name]) < 2:
                raise ValueError(f"{fault} has fewer than two categories of {MIN_PEOPLE} people; {remedy}")
            continue
        if len(set(values)) < 2:
            raise ValueError(f"{fault} has {'one value only' if values else 'no value'}; {remedy}")
        low, high = torch.tensor(values, dtype=torch.double).quantile(torch.tensor([0.02, 0.98]).double()).tolist()
        margin = (high - low or max(values) - min(values)) / 4
        low, high = low - margin if min(values) < 0 else max(low - margin, 0.0), high + margin
        if step := int(all(value == round(value) for value in values)):
            low, high = math.floor(low), math.ceil(high)
        known[name] = [float(f"{low:.3g}"), float(f"{high:.3g}"), step]
        if known[name][0] == known[name][1]:
            raise ValueError(f"{fault} has values that are equal in three significant digits; {remedy}")
    return known


def is_number(known: Sequence[Any]) -> bool:
    """Whether an entry of ``Known`` is that of a number."""
    return not isinstance(known[0], str)


def pack(known: Known) -> Tensor:
    """As bytes (n,), to be stored with the weights."""
    return torch.tensor(list(json.dumps(dict(known)).encode()), dtype=torch.uint8)


def unpack(stored: Tensor | None) -> Known:
    """The inverse of `pack`; empty without bytes."""
    return json.loads(bytes(stored.tolist())) if stored is not None and stored.numel() else {}


def select(prior: Prior, fields: Sequence[str], known: Known) -> Prior:
    """The prior with these fields only, in their order; a category on which the model was not trained is left out."""
    more = {name: prior.values(name) for name in further(fields)}
    for name, values in more.items():
        if name in known and not is_number(known[name]):
            more[name] = tuple(value if value in known[name] else None for value in values)
    return prior.without(*(set(PROMPT_FIELDS) - set(fields))).stating(more)


def check_attributes(values: Mapping[str, Any], known: Known, where: str) -> dict[str, float | str]:
    """Attributes of one person as the model takes them; text that states a number is read.

    Raises
    ------
    ValueError
        A field, a category or a number on which the model was not trained; ``where`` starts the message.
    """
    checked: dict[str, float | str] = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"{where}: the model has no attribute {name!r}; besides age and sex it has "
                f"{', '.join(known) or 'none'}: leave it out, or train a model with {name} in its fields"
            )
        entry = known[name]
        if not is_number(entry):
            if value not in entry:
                raise ValueError(f"{where}: {name} is {value!r}; expected {', '.join(entry)}, as in training")
            checked[name] = value
            continue
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not entry[0] <= number <= entry[1]:
            expected = f"a number from {entry[0]:g} to {entry[1]:g}, the range covered in training"
            raise ValueError(f"{where}: {name} is {value!r}; expected {expected}")
        checked[name] = number
    return checked


# ── what the text tower learns, and the columns of a linear design ────────────────────────────────


def words(known: Known) -> tuple[str, ...]:
    """Sentence parts that hold every word of these fields but digits."""
    parts = [
        phrase(name, value) for name, entry in known.items() for value in (["-0.5"] if is_number(entry) else entry)
    ]
    return tuple(f" with {part}, {part}" for part in parts)


def vocabulary(tokens: Tensor) -> Tensor:
    """CLIP token id → place among the ``tokens`` (N,) in use, or −1."""
    places = torch.full((int(tokens.max()) + 1,), -1, device=tokens.device)
    places[tokens] = torch.arange(len(tokens), device=tokens.device)
    return places


def longest(known: Known) -> dict[str, float | str]:
    """Values of all fields that make a long sentence."""
    values = {name: [*entry[:2], -0.123] if is_number(entry) else entry for name, entry in known.items()}
    return {name: max(entry, key=lambda value: len(phrase(name, value))) for name, entry in values.items()}


def draw_prompts(n: int, generator: torch.Generator, known: Known) -> tuple[list[dict[str, Any]], Tensor]:
    """Random arguments of ``n`` prompts, each field given with a chance of 0.8, and their content (n, 4 + k).

    The content is what the text tower's pretraining recovers: age in standard deviations, age given, sex (−1, 0, 1),
    tracer; then of each number as stated, its place in the range (−2 to 2) and whether it is given, and 0 or 1 for each
    category.
    """
    low, high = AGE_RANGE
    people, target = [], torch.zeros(n, 4)
    for i, (a, with_age, s, with_sex, c) in enumerate(torch.rand((n, 5), generator=generator).tolist()):
        age = round(low + (high - low) * a, 1) if with_age < 0.8 else None
        sex = SEXES[int(2 * s)] if with_sex < 0.8 else None
        people.append({"tracer": TRACERS[int(2 * c)], "age": age, "sex": sex})
        if age is not None:
            target[i, 0], target[i, 1] = (age - (low + high) / 2) / ((high - low) / 4), 1
        if sex is not None:
            target[i, 2] = 2 * SEXES.index(sex) - 1
        target[i, 3] = 2 * int(2 * c) - 1
    columns = [target]
    for name, entry in known.items():
        values, column = _draw_attribute(entry, n, generator)
        columns.append(column)
        for person, value in zip(people, values, strict=True):
            person[name] = value
    return people, torch.cat(columns, 1)


def draw_priors(n: int, seed: int, known: Known) -> tuple[Prior, Tensor]:
    """Random people, and the standardised content (n, 3 + k) of their prompts but the tracer: see `draw_prompts`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "content of sentences"))
    people, content = draw_prompts(n, generator, known)
    columns = {name: tuple(person[name] for person in people) for name in (*PROMPT_FIELDS, *known)}
    prior = Prior(columns.pop("age"), columns.pop("sex"), more=columns)
    content = torch.cat([content[:, :3], content[:, 4:]], 1).double()
    return prior, (content - content.mean(0)) / content.std(0).clamp(min=1e-3)


def _draw_attribute(entry: Sequence[Any], n: int, generator: torch.Generator) -> tuple[list[Any], Tensor]:
    values, content = [], torch.zeros(n, 2 if is_number(entry) else len(entry))
    for i, (u, given) in enumerate(torch.rand((n, 2), generator=generator).tolist()):
        if given >= 0.8:
            values.append(None)
        elif is_number(entry):
            low, high, step = entry
            value = low + (high - low) * u
            values.append(float(number_text(round(value) if step else value)))
            content[i, 0], content[i, 1] = (values[-1] - (low + high) / 2) / ((high - low) / 4), 1
        else:
            values.append(entry[int(u * len(entry))])
            content[i, int(u * len(entry))] = 1
    return values, content


def design_columns(prior: Prior, known: Known) -> list[list[float]]:
    """Columns of a linear design, NaN where unknown: a number, or 0 and 1 for each category but the first."""
    columns = []
    for name, entry in known.items():
        values = prior.values(name)
        if is_number(entry):
            columns.append([math.nan if value is None else float(value) for value in values])
        for category in () if is_number(entry) else entry[1:]:
            columns.append([float(value == category) if value in entry else math.nan for value in values])
    return columns
