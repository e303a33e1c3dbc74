"""Stored volumes → what the figures take: who is shown, by which rule, and their arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.evaluation.conditioning import age_sweep, condition_part
from resdm_suite.evaluation.image_quality import has_all_tracers, read_index, read_volume, volume_pairs
from resdm_suite.evaluation.readings import present_tracers
from resdm_suite.evaluation.statistics import person_weights, typical_session
from resdm_suite.evaluation.suvr import regional_agreement, regional_suvr, texture_summary, to_suvr
from resdm_suite.profiles import MIN_GROUP_SIZE, Config, PreprocessConfig
from resdm_suite.records import reading
from resdm_suite.reporting import slices, style
from resdm_suite.reporting.tables import REFERENCE_METHOD, present_methods


@dataclass(frozen=True)
class Case:
    """What a figure shows of one tracer: one person, or the mean of a group.

    Parameters
    ----------
    title : str
        ``Aβ-PET``, with the group and its size where it is a mean.
    cuts : tuple of (str, float)
        Axis and MNI mm of the slices to show.
    mri : ndarray (X, Y, Z)
        Intensities in [0, 1].
    real : ndarray (X, Y, Z)
        SUVR, or in [0, 1] where each scan has its own scale.
    synthetic : dict of str to ndarray (X, Y, Z)
        The same by method.
    quality : dict of str to (float, float)
        PSNR (dB) and MAE (%) inside the brain, by method; over people where it is a mean.
    """

    title: str
    cuts: tuple[slices.Cut, ...]
    mri: np.ndarray
    real: np.ndarray
    synthetic: dict[str, np.ndarray]
    quality: dict[str, tuple[float, float]]


def shown_cases(config: Config, scores: pd.DataFrame, methods: Sequence[str]) -> tuple[str, list[Case]]:
    """What Figures 2 and 3 may show: a typical test person, or group means where single people may not be shown.

    Parameters
    ----------
    config : Config
    scores : DataFrame
        Stored scores of the methods and of ResDM, see `resdm_suite.evaluation.image_quality.read_scores`.
    methods : sequence of str
        Columns of the figure.

    Returns
    -------
    caption : str
        Who is shown, by which rule.
    cases : list of Case
    """
    index = read_index(config)
    if config.individual:
        person, session = typical_session(scores)
        row = index[(index["person"] == person) & (index["session"] == session)]
        groups = {(tracer, ""): row for tracer in TRACERS if row[f"present_{tracer}"].iloc[0] == 1}
        who = row.iloc[0]
        name = f"{person} ({who['diagnosis']}, {who['age']:.0f} years, {who['sex']})"
        caption = f"{name if config.cohort.kind == 'phantom' else 'One test person'}: median in-brain PSNR of ResDM."
        caption += " Left is left. PSNR and MAE are of this person, inside the brain."
    else:
        by_status = {tracer: _status_groups(index[index[f"present_{tracer}"] == 1], tracer) for tracer in TRACERS}
        groups = {(tracer, name): part for tracer, parts in by_status.items() for name, part in parts.items()}
        caption = "Means of test people by status; nobody is shown alone. PSNR and MAE: means over people."
    if not groups:
        return f"Fewer than {MIN_GROUP_SIZE} test people: no mean is drawn, to protect their privacy.", []
    cases = [_case(config, scores, methods, *key, part) for key, part in groups.items()]
    return f"{caption} Colours saturate at the bars' tips.", cases


def _case(
    config: Config, scores: pd.DataFrame, methods: Sequence[str], tracer: str, name: str, rows: pd.DataFrame
) -> Case:
    """The mean over the people of some sessions, each person's sessions averaged first."""
    grid, suvr_range = Grid.of(config.preprocess.grid), config.preprocess.pet_range[tracer]
    count = rows["person"].nunique()
    weights = person_weights(rows["person"]) / count
    scored = scores.merge(rows[["person", "session"]]).query("tracer == @tracer and region == 'brain'")
    synthetic, quality = {}, {}
    for method in methods:
        paths = [path for *_, which, _, path in volume_pairs(config, method, rows) if which == tracer]
        synthetic[method] = to_suvr(_mean(paths, weights, grid), suvr_range)
        people = scored[scored["method"] == method].groupby("person")[["psnr", "mae"]].mean().mean()
        quality[method] = float(people["psnr"]), 100 * float(people["mae"])
    real = to_suvr(_mean([config.volumes / path for path in rows[tracer]], weights, grid), suvr_range)
    mri = _mean([config.volumes / path for path in rows["t1w"]], weights, grid)
    title = f"{style.TRACER_TITLES[tracer]}, {name} (n = {count})" if name else style.TRACER_TITLES[tracer]
    return Case(title, (slices.GROUP_SLICES if name else slices.SLICES)[tracer], mri, real, synthetic, quality)


def case_figure(
    title: str, config: Config, caption: str, cases: Sequence[Case], methods: Sequence[str]
) -> style.PaperFigure:
    """Figures 2 and 3: two rows for each slice of each case, a column for the real PET and for each method.

    Above the real PET and the syntheses, below the T1 and the errors. ``caption`` and ``cases``: see `shown_cases`.
    """
    strips = [(case, cut) for case in cases for cut in case.cuts]
    ratios = [slices.slice_aspect(cut) for _, cut in strips for _ in range(2)]
    height = 0.7 + (style.WIDTH - 0.9) / (len(methods) + 1) * sum(ratios) + 0.35 * len(strips)  # inches
    figure = style.paper_figure(height, title, config.notice, caption)
    if not strips:
        return figure
    axes = figure.subplots(len(ratios), len(methods) + 1, height_ratios=ratios)
    for axis, name in zip(axes[0], ["Real", *methods], strict=True):
        weight = "bold" if name == REFERENCE_METHOD else None
        axis.set_title(style.method_label(name), fontsize=6 if len(methods) < 10 else 5, fontweight=weight)
    for (case, cut), images, errors in zip(strips, axes[::2], axes[1::2], strict=True):
        _draw_case(images, errors, case, cut, config.preprocess)
    return figure


def _draw_case(
    images: Sequence[Axes], errors: Sequence[Axes], case: Case, cut: slices.Cut, settings: PreprocessConfig
) -> None:
    """One slice of a case, with colour bars."""
    brain = mni_map("brain", grid := Grid.of(settings.grid))
    differences = {method: volume - case.real for method, volume in case.synthetic.items()}
    window = slices.suvr_window([case.real, *case.synthetic.values()], brain)
    signed = slices.error_window(differences.values(), brain)
    slices.show_slice(images[0], case.real, grid, cut, window, style.PET_MAP, marks=True)
    slices.show_slice(errors[0], case.mri, grid, cut, Normalize(0, 1), style.T1_MAP)
    images[0].set_ylabel(f"{case.title}\n{slices.slice_name(cut)}", fontsize=6)
    errors[0].set_ylabel("T1 and\nerrors", fontsize=6)
    for method, image, error in zip(case.synthetic, images[1:], errors[1:], strict=True):
        slices.show_slice(image, case.synthetic[method], grid, cut, window, style.PET_MAP)
        slices.show_slice(error, differences[method], grid, cut, signed, style.ERROR_MAP)
        slices.draw_outline(error, brain, grid, cut, "#888888", 0.5)
        if cut == case.cuts[-1]:
            error.set_xlabel("{:.1f}\n{:.2f}".format(*case.quality[method]), fontsize=6)
            errors[0].set_xlabel("PSNR (dB)\nMAE (%)", fontsize=6, color=style.GREY)
    style.colour_bar(images, window, style.PET_MAP, settings.pet_unit, extend="max")
    style.colour_bar(errors, signed, style.ERROR_MAP, f"error ({settings.pet_unit})", extend="both")


def _status_groups(rows: pd.DataFrame, tracer: str) -> dict[str, pd.DataFrame]:
    """Test sessions by the tracer's status, where enough people are in each group; else all; else none."""
    status = rows.get(f"{tracer}_status", pd.Series(np.nan, index=rows.index))
    groups = {name: rows[status == value] for value, name in enumerate(("negative", "positive"))}
    large = {name: part for name, part in groups.items() if part["person"].nunique() >= MIN_GROUP_SIZE}
    return large or ({"all": rows} if rows["person"].nunique() >= MIN_GROUP_SIZE else {})


def _mean(paths: Iterable[Path], weights: np.ndarray, grid: Grid) -> np.ndarray:
    """The weighted mean of stored volumes, one in memory at a time."""
    total = np.zeros(grid.shape)
    for path, weight in zip(paths, weights, strict=True):
        total += weight * read_volume(path, grid)
    return total.astype(np.float32)


def read_trace(config: Config) -> dict[str, np.ndarray]:
    """What Figure 1 draws: the stored ``trace.npz`` of ResDM.

    Raises
    ------
    FileNotFoundError
        None is stored: ResDM is not synthesised, or too few people may be shown.
    ValueError
        It is damaged, or of one person, where figures may not show single people.
    """
    path = config.predictions(REFERENCE_METHOD) / "trace.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no trace of {REFERENCE_METHOD!r}; synthesise the test people. One person with all tracers is "
            f"needed, or {MIN_GROUP_SIZE} where privacy is aggregate"
        )
    with reading(path), np.load(path) as stored:
        trace = dict(stored)
    people = int(trace.get("people", 1))
    if not config.individual and people < MIN_GROUP_SIZE:
        raise ValueError(
            f"{path}: the tensors of {people} person, and profile {config.profile!r} shows no single people (privacy: "
            f"aggregate); synthesise {MIN_GROUP_SIZE} or more test people of {REFERENCE_METHOD!r}"
        )
    return trace


def _examples(config: Config, split: str) -> pd.DataFrame:
    """The first person with all tracers of the split, or `MIN_GROUP_SIZE` where single people may not be shown.

    No row where there are too few.
    """
    index = read_index(config, split)
    whole = index[has_all_tracers(index)].drop_duplicates("person")
    count = 1 if config.individual else MIN_GROUP_SIZE
    return whole[:count] if len(whole) >= count else whole[:0]


def example_volumes(config: Config, method: str, condition: str = "factual") -> dict[str, np.ndarray]:
    """T1, real and synthetic PETs of one test person, or of the mean of `MIN_GROUP_SIZE` people, by title.

    T1 intensities lie in [0, 1], PETs are SUVR unless each scan has its own scale, all (X, Y, Z). Empty where too few
    people have all tracers.
    """
    grid, rows = Grid.of(config.preprocess.grid), _examples(config, "test")
    if rows.empty:
        return {}
    weights = np.full(len(rows), 1 / len(rows))
    who = "" if len(rows) == 1 else f", mean of {len(rows)} people"
    volumes = {f"T1{who}": _mean([config.volumes / path for path in rows["t1w"]], weights, grid)}
    pairs = list(volume_pairs(config, method, rows, condition))
    for tracer in dict.fromkeys(pair[2] for pair in pairs):
        for i, name in ((3, "real"), (4, f"{method}, {condition}")):
            mean = _mean([pair[i] for pair in pairs if pair[2] == tracer], weights, grid)
            volumes[f"{style.TRACER_TITLES[tracer]}, {name}{who}"] = to_suvr(mean, config.preprocess.pet_range[tracer])
    return volumes


def walkthrough_volumes(config: Config) -> dict[str, Any]:
    """Volumes of one training person, or of the mean of `MIN_GROUP_SIZE` people, for the walk through the method.

    Returns
    -------
    dict
        ``mri`` (X, Y, Z) and ``pet`` (2, X, Y, Z), in [0, 1], 0 for a tracer that nobody has; ``age``, ``sex`` (None
        for a mean), ``people``.

    Raises
    ------
    ValueError
        Too few training people have all tracers.
    """
    grid, rows = Grid.of(config.preprocess.grid), _examples(config, "train")
    if rows.empty:
        needed = 1 if config.individual else MIN_GROUP_SIZE
        raise ValueError(f"{config.volumes}: too few training people have all tracers; {needed} needed")
    weights = np.full(len(rows), 1 / len(rows))
    stored = [[config.volumes / path for path in rows[name].dropna()] for name in ("t1w", *TRACERS)]
    mri, *pet = (_mean(paths, weights[: len(paths)], grid) for paths in stored)
    sex = str(rows["sex"].iloc[0]) if config.individual else None
    return {"mri": mri, "pet": np.stack(pet), "age": float(rows["age"].mean()), "sex": sex, "people": len(rows)}


FIGURE5_AXES = {"real": "age", "factual": "prompt_age", "no_age": "age", "shuffled_age": "prompt_age"}
"""Panels of Figure 5: condition, and the age on its x axis (the person's own, or the prompt's)."""


def figure5_data(config: Config, age: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What Figure 5 may show of ResDM.

    Parameters
    ----------
    config : Config
    age : DataFrame
        Rows of ``age.csv``.

    Returns
    -------
    points : DataFrame
        tracer, condition, years (see `FIGURE5_AXES`), predicted, spread. One row per session. Where single people may
        not be shown, one row per five years of age with at least `MIN_GROUP_SIZE` people: mean and standard deviation.
    lines : DataFrame
        Of the sweep over prompt ages: tracer, line, years, predicted, spread. One line per person and their ``mean``;
        the mean alone where single people may not be shown.
    """
    points, lines = [], []
    for tracer in present_tracers(age):
        for condition, column in FIGURE5_AXES.items():
            part = condition_part(age, "age", REFERENCE_METHOD, condition, tracer)
            part = part.assign(years=part[column].astype(float), spread=np.nan)
            if not config.individual:
                part = _five_years(part.assign(weight=person_weights(part["person"])))
            points.append(part[["years", "predicted", "spread"]].assign(tracer=tracer, condition=condition))
        sweep = age_sweep(age, REFERENCE_METHOD, tracer)
        if sweep.shape[1] > 1 and (config.individual or len(sweep) >= MIN_GROUP_SIZE):
            people = sweep.to_numpy() if config.individual else []
            curves = {str(i): (row, np.nan) for i, row in enumerate(people)}
            curves["mean"] = sweep.mean(), sweep.std(ddof=1)
            for name, (predicted, spread) in curves.items():
                curve = {"years": sweep.columns, "predicted": predicted, "spread": spread}
                lines.append(pd.DataFrame(curve).assign(tracer=tracer, line=name))
    empty = pd.DataFrame(columns=["tracer", "line", "years", "predicted", "spread"])
    return pd.concat(points, ignore_index=True), pd.concat(lines, ignore_index=True) if lines else empty


def _five_years(part: pd.DataFrame) -> pd.DataFrame:
    """Weighted mean and standard deviation of every five years with enough people."""
    rows = []
    for years, group in part.groupby(5 * np.floor(part["years"] / 5)):
        if group["person"].nunique() >= MIN_GROUP_SIZE:
            mean = np.average(group["predicted"], weights=group["weight"])
            variance = np.average((group["predicted"] - mean) ** 2, weights=group["weight"])
            rows.append({"years": years + 2.5, "predicted": mean, "spread": np.sqrt(variance)})
    return pd.DataFrame(rows, columns=["years", "predicted", "spread"])


def regional_comparison(config: Config) -> tuple[pd.DataFrame, ...]:
    """Regional SUVR of every method with stored predictions, real against synthetic.

    No row where each volume is scaled to its own range, so that there is no SUVR.

    Returns
    -------
    points : DataFrame
        method, tracer, real, synthetic (cortical summary, SUVR), real_std and synthetic_std. One row per person; where
        single people may not be shown, one per group of similar real SUVR: up to ten groups of at least
        `MIN_GROUP_SIZE` people each.
    agreement, textures : DataFrame
        See `regional_agreement` and `texture_summary`.
    """
    if not config.preprocess.in_suvr:
        empty = pd.DataFrame(columns=["method", "tracer", "region", "r", "bias", "error", "icc"], dtype=float)
        return empty, empty, empty
    parts = [regional_suvr(config, method) for method in present_methods(config)]
    regional, textures = (pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))
    rows, summary = ["method", "tracer"], regional[regional["region"] == "summary"]
    people = summary.groupby([*rows, "person"], as_index=False)[["real", "synthetic"]].mean().sort_values("real")
    size, rank = people.groupby(rows)["real"].transform("size"), people.groupby(rows).cumcount()
    groups = size if config.individual else (size // MIN_GROUP_SIZE).clip(upper=10)
    grouped = people[groups > 0].groupby([*rows, rank * groups // size])[["real", "synthetic"]]
    points = grouped.mean().join(grouped.std().add_suffix("_std")).droplevel(-1).reset_index()
    return points, regional_agreement(regional), texture_summary(textures)


def draw_regional(figure: Figure, points: pd.DataFrame, agreement: pd.DataFrame, textures: pd.DataFrame) -> None:
    """Draw `regional_comparison`: scatter of ResDM, texture, correlation and bias by region, one row per tracer."""
    if agreement.empty:
        figure.text(0.01, 0.1, "No SUVR: each volume is scaled to its own range.")
        return
    tracers, names = (list(dict.fromkeys(agreement[key])) for key in ("tracer", "method"))
    method = REFERENCE_METHOD if REFERENCE_METHOD in names else names[0]
    looks, ticks = style.method_styles(names), np.arange(len(names))[::-1]
    dot = {"markersize": 3.4, "markeredgewidth": 0}
    shown = {name: dot | ({"markersize": 5, "zorder": 4} if name == method else {}) for name in names}
    mosaic = [[f"{left} {t}", f"r {t}", f"bias {t}"] for t in tracers for left in ("summary", "texture")]
    panels = figure.subplot_mosaic(mosaic, height_ratios=[1.6, 1] * len(tracers))
    for tracer in tracers:
        rows = agreement[agreement["tracer"] == tracer]
        regions = rows["region"].unique()
        scatter, part = panels[f"summary {tracer}"], points[(points["tracer"] == tracer) & (points["method"] == method)]
        look = {"fmt": "o", "color": looks[method][0], "elinewidth": 0.7, **dot}
        scatter.errorbar("real", "synthetic", "synthetic_std", "real_std", data=part, **look)
        ends = sorted([*scatter.get_xlim(), *scatter.get_ylim()])[::3]
        scatter.plot(ends, ends, color=style.GREY, linewidth=0.7, dashes=(3, 2))
        scatter.set(xlim=ends, ylim=ends, box_aspect=1, xlabel="real (SUVR)", ylabel="synthetic (SUVR)")
        one = rows[(rows["method"] == method) & (rows["region"] == "summary")].iloc[0]
        text = f"r = {one['r']:.2f}\nICC = {one['icc']:.2f}\nn = {one['n']:.0f}".replace("-", "−")
        scatter.text(0.04, 0.97, text, transform=scatter.transAxes, va="top", fontsize=6.5)
        scatter.set_title(f"{style.TRACER_TITLES[tracer]}, cortical summary, {method}", loc="left")
        texture, ratios = panels[f"texture {tracer}"], textures[textures["tracer"] == tracer].set_index("method")
        for tick, (name, (colour, marker)) in zip(ticks, looks.items(), strict=True):
            mean, std = ratios.loc[name, ["mean", "std"]]
            texture.errorbar(mean, tick, xerr=std, fmt=marker, color=colour, elinewidth=0.7, **shown[name])
        texture.axvline(1, color=style.GREY, linewidth=0.6)
        texture.set_yticks(ticks, [style.method_label(name) for name in names], fontsize=5.5)
        texture.set_xlim(left=0)
        texture.locator_params(axis="x", nbins=4)
        texture.set_title("texture", loc="left")
        for column, title in {"r": "r over people", "bias": "bias: synthetic − real (SUVR)"}.items():
            axis = panels[f"{column} {tracer}"]
            places = style.region_rows(axis, regions, names=column == "r", rim=0.2)
            for k, (name, (colour, marker)) in enumerate(looks.items()):
                values = rows[rows["method"] == name].set_index("region").reindex(regions)
                y = places + (0.5 - (k + 0.5) / len(names)) * 0.75
                if column == "bias" and len(names) <= 4:
                    axis.hlines(y, values["bias_low"], values["bias_high"], color=colour, linewidth=0.7)
                axis.plot(values[column], y, marker, color=colour, label=style.method_label(name), **shown[name])
            axis.set_title(title, loc="left")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower left", ncols=7)
