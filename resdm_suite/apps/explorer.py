"""The explorer: synthesis of one person under any prompt, in a notebook.

Changes of age, sex, steps, seed or number of samples start a synthesis; changes of x, y or z only draw other slices.
Samples are cached, so an earlier prompt is shown at once. All prompts use the same noise, so only the prompt differs
between them. The views show the mean over samples, neither a spread nor a status (see `resdm_suite.apps.single_scan`).
"""

import html
import io
import math
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resdm.io import atomic, sha256, write_json
from resdm.settings import AGE_RANGE, SEXES, TRACERS, MethodConfig, check_person, derive_seed
from resdm_suite.apps.prediction import T1_UNITS, Model, bids_prefix, check_phantom, synthetic_head, units
from resdm_suite.apps.single_scan import prompt_text
from resdm_suite.evaluation.image_quality import read_index, read_volume
from resdm_suite.evaluation.suvr import regional_means, to_suvr
from resdm_suite.preprocessing.t1 import preprocess_mri
from resdm_suite.profiles import Config
from resdm_suite.reporting.slices import FIELD_MM
from resdm_suite.reporting.style import TRACER_TITLES
from resdm_suite.reporting.views import Scene, orthogonal_views

MAX_CACHE_BYTES = 500e6
"""Limit of the cached samples; those not shown for the longest time are removed first."""

START_MM = (7.0, -58.0, 24.0)
"""First point of the views, MNI mm: in the precuneus."""


@dataclass(frozen=True)
class Request:
    """What a synthesis depends on."""

    source: str  # <person> <session> of the test people, or the path of a T1
    age: float | None  # None: not in the prompt
    sex: str | None
    steps: int | None  # None: a method without steps
    seed: int
    samples: int


def step_choices(settings: MethodConfig) -> list[int]:
    """Numbers of sampling steps that a method can take; empty for a method without steps."""
    match settings.kind:
        case "residual_diffusion":
            return list(range(1, settings.steps + 1))
        case "released":
            return list(range(1, 16))
        case "ddpm":
            return [n for n in range(1, min(settings.steps, 250) + 1) if settings.steps % n == 0]
    return []


class ExplorerModel:
    """A trained method, its test people, and a cache of its samples.

    ``allow_phantom_model`` is for a T1 file, see `resdm_suite.apps.prediction.check_phantom`.
    """

    def __init__(self, config: Config, method: str = "ResDM", allow_phantom_model: bool = False) -> None:
        self.config, self.method, self._allow_phantom_model = config, method, allow_phantom_model
        self.model = Model.of_profile(config, method)
        index = read_index(config)
        keys = index["person"] + " " + index["session"]
        self.people: dict[str, dict[str, Any]] = dict(zip(keys, index.to_dict("records"), strict=True))
        low, high = map(int, AGE_RANGE)
        self.ages = (max(low, int(index["age"].min()) - 10), min(high, int(index["age"].max()) + 10))
        self.synthesised = 0  # samples that were not in the cache
        sample_bytes = 4 * len(TRACERS) * math.prod(self.model.grid.shape)
        self._cached_sample = lru_cache(max(1, int(MAX_CACHE_BYTES / sample_bytes)))(self._sample)
        self.mri = cache(self._mri)

    def factual_prompt(self, source: str) -> tuple[float | None, str | None]:
        """A test person's age and sex; unknown for a file."""
        row = self.people.get(source)
        return (None, None) if row is None else (float(row["age"]), str(row["sex"]))

    def _mri(self, source: str) -> np.ndarray:
        """T1 on the model's grid (X, Y, Z), intensities in [0, 1]; raises if ``source`` is unknown or not allowed."""
        if source in self.people:
            return read_volume(self.config.volumes / self.people[source]["t1w"], self.model.grid)
        if not Path(source).is_file():
            raise FileNotFoundError(
                f"{source}: neither a T1 file nor one of the {len(self.people)} test sessions (<person> <session>)"
            )
        check_phantom(self.model.card, self._allow_phantom_model)
        return preprocess_mri(Path(source), self.model.card.config)[0]

    def sample(self, request: Request, number: int) -> np.ndarray:
        """One sample of both PETs (2, X, Y, Z), in [0, 1]."""
        return self._cached_sample(replace(request, samples=1), number)

    def _sample(self, request: Request, number: int) -> np.ndarray:
        check_person(request.age, request.sex, "prompt")
        seed, mri = derive_seed(request.seed, request.source, number), self.mri(request.source)
        pet = self.model.synthesise(mri, request.age, request.sex, seed=seed, steps=request.steps)
        self.synthesised += 1
        return pet

    def scene(self, request: Request) -> Scene:
        """Volumes of the views: PETs and their change from the factual prompt, means over samples."""
        pet = self._mean(request)
        age, sex = self.factual_prompt(request.source)
        factual = pet if (age, sex) == (request.age, request.sex) else self._mean(replace(request, age=age, sex=sex))
        change = {tracer: pet[tracer] - factual[tracer] for tracer in TRACERS}
        unit = self.model.card.config.preprocess.pet_unit
        return Scene(grid=self.model.grid, mri=self.mri(request.source), pet=pet, change=change, unit=unit)

    def _mean(self, request: Request) -> dict[str, np.ndarray]:
        """Mean over samples by tracer (X, Y, Z), SUVR where the model has its scale."""
        stack = np.stack([self.sample(request, number) for number in range(request.samples)])  # (K, 2, X, Y, Z)
        ranges = self.model.card.config.preprocess.pet_range
        return {tracer: to_suvr(stack[:, i].mean(axis=0), ranges[tracer]) for i, tracer in enumerate(TRACERS)}

    def export(self, request: Request, scene: Scene, picture: bytes, point: tuple[float, float, float]) -> Path:
        """Write picture, volumes (NIfTI, MNI152) and settings to a folder named by the request; returns it."""
        person, card = request.source in self.people, self.model.card
        stem = request.source.replace(" ", "_") if person else bids_prefix(request.source)
        values = {"age": request.age if request.age is None else f"{request.age:g}", "sex": request.sex}
        values |= {"steps": request.steps, "seed": request.seed, "samples": request.samples}
        parts = [stem, self.method, *(f"{name}-{value}" for name, value in values.items() if value is not None)]
        folder = self.config.work / "explorer" / re.sub(r"[^\w.+-]", "", "_".join(parts))
        kinds = {"mean": scene.pet, "change": scene.change}
        volumes = {f"trc-{t}_desc-{kind}_pet": by[t] for kind, by in kinds.items() for t in by} | {"T1w": scene.mri}
        with atomic(folder / "views.png") as temporary:
            temporary.write_bytes(picture)
        age, sex = self.factual_prompt(request.source)
        file = {} if person else {"source": Path(request.source).name, "sha256": sha256(request.source)}
        settings = synthetic_head(self.config, self.method, self.model.card.notice, self.model.origin)
        settings |= {"request": asdict(request) | file, "factual_prompt": {"age": age, "sex": sex}}
        settings["point_mm"] = list(point)
        for entity, volume in volumes.items():
            path = folder / f"{stem}_space-MNI152_{entity}.nii.gz"
            unit = scene.unit if scene.unit == "SUVR" else units(card.config, TRACERS[0])  # no SUVR: of both tracers
            unit = T1_UNITS if entity == "T1w" else unit
            self.model.write(path, volume, settings | {"space": "MNI152", "Units": unit})
        write_json(folder / "settings.json", settings)
        return folder


class Explorer(widgets.VBox):
    """Widgets over an `ExplorerModel`; display it in JupyterLab.

    ``person`` is shown first: ``<person>``, ``<person> <session>`` or the path of a T1; by default the first session.
    ``request`` and ``scene`` are shown, ``draw_count`` is the number of pictures drawn so far.
    """

    def __init__(self, model: ExplorerModel, person: str | None = None) -> None:
        self.model, self.draw_count, self._muted = model, 0, False
        sessions = [key for key in model.people if person in (None, key, key.split(" ")[0])]
        source = sessions[0] if sessions else person
        self._file = "" if sessions else source
        age, sex = model.factual_prompt(source)
        narrow = {"layout": widgets.Layout(width="268px"), "style": {"description_width": "64px"}}
        late = {"continuous_update": False} | narrow
        button = {"layout": widgets.Layout(width="110px")}
        settings = model.model.card.settings
        steps = step_choices(settings)
        people = [(_session_label(key, row), key) for key, row in model.people.items()]
        shown = source if sessions else None
        self.person = widgets.Dropdown(options=people, value=shown, description="person", **narrow)
        self.file = widgets.Text(self._file, description="or a T1", placeholder="path, then Enter", **late)
        self.age = widgets.IntSlider(round(age or 70), *model.ages, description="age", **late)
        sexes, style = (
            [(one, one) for one in SEXES] + [("none", None)],
            {"button_width": "56px", "description_width": "64px"},
        )
        self.sex = widgets.ToggleButtons(options=sexes, value=sex, description="sex", style=style)
        beside = widgets.Layout(width="140px", margin="0 0 0 14px")
        self.use_age = widgets.Checkbox(age is not None, description="use age", indent=False, layout=beside)
        self.factual = widgets.Button(description="factual", tooltip="the person's age and sex", icon="undo", **button)
        usual = (getattr(settings, "sampling_steps", None) or steps[-1]) if steps else None
        choices = {"options": steps or [("–", None)], "value": usual, "disabled": not steps}
        self.steps = widgets.SelectionSlider(**choices, description="steps", **late)
        seed = model.config.seeded(model.method).seed
        self.seed = widgets.BoundedIntText(seed, 0, 2**31 - 1, description="seed", **narrow)
        self.samples = widgets.IntSlider(4, 1, 16, description="samples", **late)
        self.cuts = [
            widgets.IntSlider(round(at), *map(round, FIELD_MM[axis]), description=f"{axis} (mm)", **late)
            for axis, at in zip("xyz", START_MM, strict=True)
        ]
        button |= {"icon": "save", "button_style": "primary"}
        self.save = widgets.Button(description="export", tooltip="picture, NIfTI and settings", **button)
        self.status, self.readout = widgets.HTML(), widgets.HTML()
        self.image = widgets.Image(format="png", layout=widgets.Layout(width="100%", max_width="1500px"))
        for widget, name in ((self.image, "resdm-views"), (self.age, "resdm-age"), (self.cuts[2], "resdm-z")):
            widget.add_class(name)
        super().__init__(self._rows())
        self.person.observe(self._on_person, "value")
        self.file.observe(self._on_file, "value")
        for widget in (self.age, self.sex, self.use_age, self.steps, self.seed, self.samples):
            widget.observe(self._on_prompt, "value")
        for widget in self.cuts:
            widget.observe(self._on_cut, "value")
        self.factual.on_click(lambda _: self._show_factual())
        self.save.on_click(lambda _: self.export())
        self.synthesise()

    def _rows(self) -> list[widgets.Widget]:
        """The layout: controls, views, values, export."""
        centred = widgets.Layout(align_items="center")
        columns = {
            "who": [self.person, self.file],
            "prompt": [self.age, self.sex, widgets.HBox([self.use_age, self.factual], layout=centred)],
            "sampler": [self.steps, self.seed, self.samples],
            "where (MNI)": self.cuts,
        }
        style = "color:#777;font-size:11px;letter-spacing:.04em"
        heads = [widgets.HTML(f"<b style='{style}'>{title.upper()}</b>") for title in columns]
        controls = [widgets.VBox([head, *column]) for head, column in zip(heads, columns.values(), strict=True)]
        wrap = widgets.Layout(flex_flow="row wrap", grid_gap="4px 12px")
        export = widgets.HBox([self.save, self.status], layout=centred)
        return [widgets.HBox(controls, layout=wrap), self.image, self.readout, export]

    @property
    def point(self) -> tuple[float, float, float]:
        """Where the views are cut, MNI mm."""
        return tuple(float(slider.value) for slider in self.cuts)

    @property
    def source(self) -> str:
        """The chosen session or file."""
        return self._file or self.person.value

    def _chosen(self) -> Request:
        factual_age = self.model.factual_prompt(self.source)[0]
        age = float(self.age.value) if self.use_age.value else None
        if None not in (age, factual_age) and age == round(factual_age):
            age = factual_age  # the slider has whole years; at the person's age the prompt is the factual one
        return Request(self.source, age, self.sex.value, self.steps.value, self.seed.value, self.samples.value)

    def synthesise(self) -> None:
        """Synthesise the chosen request, unless cached, and draw it."""
        start, before = time.perf_counter(), self.model.synthesised
        with self._report_errors("synthesising …"):
            request = self._chosen()
            self.scene = self.model.scene(request)
            self.request = request
            self.draw()
            count = self.model.synthesised - before
            what = f"{count} volume pairs synthesised" if count else "from memory"
            self.status.value = f"<small>{what}, {time.perf_counter() - start:.1f} s</small>"

    def draw(self) -> None:
        """Draw the views at `point`."""
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=120, metadata={"Software": None})
        self.image.value = buffer.getvalue()
        self.draw_count += 1
        self.readout.value = _values(self.scene, self.point)

    def figure(self) -> Figure:
        """The views as a figure."""
        request = self.request
        name = request.source if request.source in self.model.people else Path(request.source).name
        steps = f", {request.steps} steps" if request.steps else ""
        factual = prompt_text(*self.model.factual_prompt(request.source))
        title = f"{name}: prompt {prompt_text(request.age, request.sex)}"
        detail = f"{self.model.method}{steps}, seed {request.seed}, mean of {request.samples} samples; factual prompt: "
        detail += f"{factual}. Left is left. Synthetic, not for clinical use."
        return orthogonal_views(self.scene, self.point, title=title, detail=detail, notice=self.model.config.notice)

    def export(self) -> Path | None:
        """Write the shown volumes, name the folder below the picture, return it; ``None`` if nothing was written."""
        if not self.draw_count:
            return None
        with self._report_errors("writing …"):
            folder = self.model.export(self.request, self.scene, self.image.value, self.point)
            self.status.value = f"<small>written: <code>{html.escape(str(folder))}</code></small>"
            return folder

    @contextmanager
    def _report_errors(self, action: str) -> Iterator[None]:
        """Show errors below the picture; the notebook continues."""
        self.status.value = f"<small>{action}</small>"
        try:
            yield
        except (ValueError, OSError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
            self.status.value = f"<span style='color:#B00020'>{html.escape(str(error))}</span>"

    def _show_factual(self) -> None:
        """Set the person's factual prompt, and draw once."""
        age, sex = self.model.factual_prompt(self.source)
        self._muted = True
        self.age.value, self.sex.value, self.use_age.value = round(age or self.age.value), sex, age is not None
        self._muted = False
        self.synthesise()

    def _on_person(self, _: Any) -> None:
        if self.person.value is not None:
            self._muted, self._file = True, ""
            self.file.value = ""
            self._show_factual()

    def _on_file(self, change: dict[str, Any]) -> None:
        if not self._muted and change["new"].strip():
            self._muted, self._file = True, change["new"].strip()
            self.person.value = None
            self._show_factual()

    def _on_prompt(self, _: Any) -> None:
        if not self._muted:
            self.synthesise()

    def _on_cut(self, _: Any) -> None:
        if self.draw_count:
            with self._report_errors(""):
                self.draw()


def explore(
    config: Config, method: str = "ResDM", person: str | None = None, *, allow_phantom_model: bool = False
) -> Explorer:
    """The explorer of a profile's trained method; parameters as of `ExplorerModel` and `Explorer`."""
    return Explorer(ExplorerModel(config, method, allow_phantom_model), person)


def _session_label(key: str, row: dict[str, Any]) -> str:
    known = [str(row.get("diagnosis") or ""), f"{row['age']:.0f} years", str(row["sex"])]
    return f"{key} ({', '.join(part for part in known if part not in ('', 'nan'))})"


def _values(scene: Scene, point: tuple[float, float, float]) -> str:
    """The voxel at the cross hairs and the cortical summary, as an HTML table."""
    rows = {}
    for tracer, here in scene.at(point).items():
        summary, change = (
            regional_means(by[tracer], scene.grid, tracer)["summary"] for by in (scene.pet, scene.change)
        )
        cells = [f"{here['pet']:.2f}", f"{here['change']:+.3f}", f"{summary:.3f}", f"{change:+.3f}"]
        rows[TRACER_TITLES[tracer]] = [cell.replace("-", "−") for cell in cells]
    places = [f"{scene.unit} here", f"{scene.unit} cortical summary"]
    columns = pd.MultiIndex.from_product([places, ["prompt", "change"]])
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).to_html(border=0)
