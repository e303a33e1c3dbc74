"""The phantom's truth recovered: planted effects beside those measured in true, real and synthetic regional SUVR."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resdm.settings import TRACERS
from resdm_suite.cohorts.phantom.truth import grey_share, thinning_slope
from resdm_suite.evaluation.planted import EFFECTS, EVERY_REGION, MIN_EFFECT, read_planted, recovered_effects, recovery
from resdm_suite.profiles import Config
from resdm_suite.reporting.style import GREY, INK, TRACER_TITLES, WIDTH, Page, method_styles, region_rows, styled
from resdm_suite.reporting.tables import (
    REFERENCE_METHOD,
    TRACER_NAMES,
    Block,
    Table,
    number,
    present_methods,
    seeds_of,
    span,
)

EFFECT_TITLES = {"status": "Status: positive − negative", "sex": "Sex: women − men", "age": "Age: a decade"}


def planted_table(config: Config, methods: Iterable[str] | None = None) -> Table:
    """Planted effects of status, sex and age, and what of them true, real and synthetic PET of test people show.

    Parameters
    ----------
    config : Config
        A phantom profile.
    methods : iterable of str, optional
        With stored predictions; by default ResDM, linear and the ceiling, where they have some. SUVR of a method's
        trainings are averaged.

    Returns
    -------
    Table
        Frame: see `evaluation.planted.recovered_effects`; last, grey_share (of an effect in the region's grey
        matter that its SUVR shows at the scanner's resolution, see `resdm_suite.cohorts.phantom.truth`).

    Raises
    ------
    ValueError, FileNotFoundError
        A cohort without planted truth.
    """
    if methods is None:
        methods = [name for name in present_methods(config) if name in (REFERENCE_METHOD, "linear", "ceiling")]
    repeats = {name: seeds_of(config, name) or [name] for name in methods}  # the ceiling is no method of the profile
    read_planted(config)  # no truth is an error of its own, before any work
    frame = recovered_effects(config, repeats, thinning_slope(config))
    shares = grey_share(config)
    frame["grey_share"] = [
        shares[tracer].get(region) for tracer, region in zip(frame["tracer"], frame["region"], strict=True)
    ]
    low, high = frame["grey_share"].min(), frame["grey_share"].max()
    sources = list(dict.fromkeys(frame["source"]))
    return Table(
        name="planted",
        title="Planted effects, and what is found of them",
        notice=config.notice,
        frame=frame,
        blocks=(_recovery_block(recovery(frame), sources), *(_effect_block(frame, e, sources) for e in EFFECTS)),
        notes=(
            "planted: the truth of the phantoms, SUVR at the scanner's resolution in a person of average anatomy; the "
            "status contrast is that of the whole cohort. truth: the same estimated from the true regional SUVR of the "
            "test people, before noise, registration and grid. real: from their PET as preprocessed. Then synthetic "
            "PET of the same people.",
            f"Status is the planted one. n = {span(frame['n'])} test people; 95 % intervals "
            "by a jackknife over people, not corrected for the number of regions.",
            f"Partial volume: at that resolution a region's SUVR shows {100 * low:.0f}–{100 * high:.0f} % of an effect "
            "in its grey matter, since it holds white matter and fluid as well (column grey_share of the .csv). This "
            "is in what is planted; what the coarser grid takes away on top is real against truth.",
            "Status: plain difference of means, as planted; sex and age may differ by chance between the few people of "
            "the two groups, and show in regions without pathology. Sex and age: at equal disease (amyloid load and "
            "tracer, or tau stage; neurodegeneration).",
            "Age: planted is the uptake's part. The cortex thins with age, so a region holds less of it; with thinning "
            "is the sum, by the generator's own model, and what a slope over people can find.",
            "Recovery: slope through the origin, over regions, of the estimates on what is planted (age: with "
            f"thinning), with its interval (region {EVERY_REGION} of the .csv); of truth: on the estimates from the "
            "true SUVR of the same people, which leaves out the chance of who they are; of ceiling: the slope over the "
            "ceiling's, which is the best estimate that MRI and prompt allow; covered: regions whose interval holds "
            f"what is planted. – where no region's effect reaches {MIN_EFFECT} SUVR.",
            *(
                f"{name}: regional SUVR averaged over {len(names)} trainings; the variance between them is in the "
                "intervals."
                for name, names in repeats.items()
                if len(names) > 1
            ),
            *([] if repeats else ["No synthetic PET: no method is trained and synthesised yet."]),
        ),
    )


def _recovery_block(slopes: pd.DataFrame, sources: Sequence[str]) -> Block:
    """One row a source and effect, one column a number: each cell is one line."""
    found = slopes.set_index(["effect", "source", "tracer"])
    columns, rows = [("", "Effect"), ("", "Source")], []
    for tracer in (t for t in TRACERS if (slopes["tracer"] == t).any()):
        columns += [(TRACER_NAMES[tracer], head) for head in ("slope", "of truth", "of ceiling", "covered")]
    for effect in EFFECTS:
        for source in sources:
            row: list[str] = [effect, source]
            for tracer in (t for t in TRACERS if (effect, source, t) in found.index):
                one = found.loc[(effect, source, tracer)]
                slope, low, high, truth, ceiling = (
                    _rounded(one[key], 2) for key in ("slope", "low", "high", "of_truth", "of_ceiling")
                )
                row += [f"{slope} [{low}, {high}]", truth, ceiling, f"{one['covered']:.0f}/{one['regions']:.0f}"]
            rows.append(tuple(row))
    return Block("Recovery over regions", tuple(columns), tuple(rows))


def _effect_block(frame: pd.DataFrame, effect: str, sources: Sequence[str]) -> Block:
    part = frame[(frame["effect"] == effect) & (frame["region"] != EVERY_REGION)]
    values = part.set_index(["tracer", "region", "source"])
    tracers = [t for t in TRACERS if (part["tracer"] == t).any()]
    planted = [("planted", "planted"), *([("expected", "with thinning")] if effect == "age" else [])]
    columns = [("", "Region")]
    for tracer in tracers:
        columns += [(TRACER_NAMES[tracer], title) for _, title in planted]
        columns += [(TRACER_NAMES[tracer], source) for source in sources]
    rows = []
    for region in dict.fromkeys(part["region"]):
        row: list[Any] = [region.replace("_", " ")]
        for tracer in tracers:
            if (tracer, region, sources[0]) not in values.index:  # the tracer's reference region
                row += ["–"] * (len(planted) + len(sources))
                continue
            row += [_rounded(values.loc[(tracer, region, sources[0])][column], 3) for column, _ in planted]
            for source in sources:
                one = values.loc[(tracer, region, source)]
                estimate, low, high = (_rounded(one[key], 3) for key in ("estimate", "low", "high"))
                row.append(f"{estimate} [{low}, {high}]")
        rows.append(tuple(row))
    return Block(f"{EFFECT_TITLES[effect]} ({part['unit'].iloc[0]})", tuple(columns), tuple(rows))


def _rounded(value: float, decimals: int) -> str:
    """`number` without the sign of a zero: what a mean PET says of an effect is rounding alone."""
    return number(round(value, decimals) + 0.0, decimals)


# ── the figure ────────────────────────────────────────────────────────────────────────────────────


@styled
def planted_figure(frame: pd.DataFrame, *, notice: str = "") -> Figure:
    """A forest of the planted effects: what is planted, and the estimates with intervals, region by region.

    Parameters
    ----------
    frame : DataFrame
        From `planted_table`.
    notice : str
    """
    frame = frame[frame["region"] != EVERY_REGION]
    tracers = [tracer for tracer in TRACERS if (frame["tracer"] == tracer).any()]
    sources = list(dict.fromkeys(frame["source"]))
    look = {"truth": (GREY, "o"), "real": (INK, "s")}
    look |= {name: (colour, "D") for name, (colour, _) in method_styles([s for s in sources if s not in look]).items()}
    head, height, left, gap = 0.84, 3.3, 1.10, 0.12
    width = (WIDTH - left - 0.08) / len(EFFECTS) - gap
    page = Page.of(WIDTH, head + len(tracers) * (height + 0.52) + 0.10)
    page.title("Planted effects, and what is found of them", notice)
    limits = {}
    for effect in EFFECTS:
        part = frame[frame["effect"] == effect][["low", "high", "estimate", "planted", "expected"]].to_numpy()
        low, high = np.nanmin(part), np.nanmax(part)
        limits[effect] = (min(low, 0) - 0.04 * (high - low), max(high, 0) + 0.04 * (high - low))
    for i, tracer in enumerate(tracers):
        top = head + i * (height + 0.52)
        for k, effect in enumerate(EFFECTS):
            axes = page.axes(left + k * (width + gap), top, width, height)
            part = frame[(frame["tracer"] == tracer) & (frame["effect"] == effect)]
            _forest(axes, part, sources, look, names=k == 0)
            axes.set_xlim(limits[effect])
            axes.set_title(EFFECT_TITLES[effect], pad=4, loc="left")
            axes.set_xlabel(part["unit"].iloc[0], labelpad=1)
        page.text(0.08, top - 0.20, TRACER_TITLES[tracer], fontsize=7.5, fontweight="bold")
    handles, labels = axes.get_legend_handles_labels()
    page.figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.005, 1 - 0.26 / page.height),
                       ncols=len(labels), columnspacing=1.4, handletextpad=0.3)  # fmt: skip
    return page.figure


def _forest(
    axes: Axes, part: pd.DataFrame, sources: Sequence[str], look: dict[str, tuple[str, str]], *, names: bool
) -> None:
    regions = list(dict.fromkeys(part["region"]))
    places = region_rows(axes, regions, names=names, rim=0.1)
    truth = part[part["source"] == sources[0]].set_index("region").loc[regions]
    axes.vlines(truth["planted"], places - 0.45, places + 0.45, color="#0072B2", linewidth=1.4, label="planted")
    if part["effect"].iloc[0] == "age":
        style = {"color": "#56B4E9", "linewidth": 1.4, "label": "planted, with the cortex thinning (age)"}
        axes.vlines(truth["expected"], places - 0.45, places + 0.45, **style)
    for k, source in enumerate(sources):
        rows = part[part["source"] == source].set_index("region").loc[regions]
        colour, marker = look[source]
        y = places + (0.5 - (k + 0.5) / len(sources)) * 0.8
        axes.hlines(y, rows["low"], rows["high"], color=colour, linewidth=0.8)
        axes.plot(rows["estimate"], y, marker, color=colour, markersize=2.4, markeredgewidth=0, label=source)
