"""The explorer: synthesis of one person under any prompt, in a notebook.

Changes of age, sex, steps, seed or number of samples start a synthesis; x, y, z or a click only draw the planes that
move. Samples are cached, so an earlier prompt is shown at once. All prompts use the same noise, so only the prompt
differs between them. The views show the mean over samples, neither a spread nor a status (see
`resdm_suite.apps.single_scan`).

A notebook stores nobody: people are read once a browser shows the explorer, and pictures and values reach it as
messages, which are no part of a widget's state. A stored picture (`ExplorerModel.export`) follows `Config.individual`.
"""

import html
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

import anywidget
import ipyniivue
import ipywidgets as widgets
import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from resdm.io import atomic, sha256, write_json
from resdm.settings import AGE_RANGE, SEXES, TRACERS, MethodConfig, check_person, derive_seed, fields_of, further
from resdm_suite.anatomy import Grid
from resdm_suite.apps.prediction import Model, bids_prefix, check_phantom, synthetic_head
from resdm_suite.apps.single_scan import prompt_text
from resdm_suite.evaluation.image_quality import read_index, read_volume
from resdm_suite.evaluation.suvr import to_suvr
from resdm_suite.paths import SPACE, bids_fields
from resdm_suite.preprocessing.dataset import read_attributes
from resdm_suite.preprocessing.suvr import units
from resdm_suite.preprocessing.t1 import T1_UNITS, preprocess_mri
from resdm_suite.profiles import Config
from resdm_suite.reporting import views
from resdm_suite.reporting.slices import FIELD_MM
from resdm_suite.reporting.style import TRACER_TITLES

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
        where, fields = str(config.volumes / "index.csv"), further(fields_of(self.model.card.settings))
        more = read_attributes(index, fields, where, self.model.method.known)
        self.attributes = {key: {name: more[name][i] for name in more} for i, key in enumerate(keys)}
        low, high = map(int, AGE_RANGE)
        self.ages = (max(low, int(index["age"].min()) - 10), min(high, int(index["age"].max()) + 10))
        self.synthesised = 0  # samples that were not in the cache
        sample_bytes = 4 * len(TRACERS) * math.prod(self.model.grid.shape)
        self._cached_sample = lru_cache(max(1, int(MAX_CACHE_BYTES / sample_bytes)))(self._sample)
        self.mri, self.real = cache(self._mri), cache(self._real)

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

    def _real(self, source: str) -> dict[str, np.ndarray]:
        """A test person's real PETs by tracer (X, Y, Z), in the unit of `scene`; none of a file."""
        row, grid = self.people.get(source, {}), self.model.grid
        found = {t: read_volume(self.config.volumes / row[t], grid) for t in TRACERS if row.get(f"present_{t}") == 1}
        return {tracer: to_suvr(pet, self._ranges[tracer]) for tracer, pet in found.items()}

    @property
    def _ranges(self) -> dict[str, tuple[float, float]]:
        return self.model.card.config.preprocess.pet_range

    def sample(self, request: Request, number: int) -> np.ndarray:
        """One sample of both PETs (2, X, Y, Z), in [0, 1]."""
        return self._cached_sample(replace(request, samples=1), number)

    def _sample(self, request: Request, number: int) -> np.ndarray:
        check_person(request.age, request.sex, "prompt")
        seed, mri = derive_seed(request.seed, request.source, number), self.mri(request.source)
        more = self.attributes.get(request.source)  # of a file they are unknown
        pet = self.model.synthesise(mri, request.age, request.sex, seed=seed, steps=request.steps, more=more)
        self.synthesised += 1
        return pet

    def scene(self, request: Request) -> views.Scene:
        """Volumes of the views: real PETs; synthetic ones and their change from the factual prompt, means."""
        pet = self._mean(request)
        age, sex = self.factual_prompt(request.source)
        factual = pet if (age, sex) == (request.age, request.sex) else self._mean(replace(request, age=age, sex=sex))
        change = {tracer: pet[tracer] - factual[tracer] for tracer in TRACERS}
        unit = self.model.card.config.preprocess.pet_unit
        return views.Scene(self.model.grid, self.mri(request.source), pet, change, self.real(request.source), unit)

    def _mean(self, request: Request) -> dict[str, np.ndarray]:
        """Mean over samples by tracer (X, Y, Z), SUVR where the model has its scale."""
        stack = np.stack([self.sample(request, number) for number in range(request.samples)])  # (K, 2, X, Y, Z)
        return {tracer: to_suvr(stack[:, i].mean(axis=0), self._ranges[tracer]) for i, tracer in enumerate(TRACERS)}

    def export(self, request: Request, scene: views.Scene, figure: Figure, point: views.Point) -> Path:
        """Write figure, synthetic volumes (NIfTI, MNI152) and settings to a folder named by the request; returns it."""
        person, preprocess = request.source in self.people, self.model.card.config.preprocess
        stem = request.source.replace(" ", "_") if person else bids_prefix(request.source)
        values = {"age": request.age if request.age is None else f"{request.age:g}", "sex": request.sex}
        values |= {"steps": request.steps, "seed": request.seed, "samples": request.samples}
        parts = [stem, self.method, *(f"{name}-{value}" for name, value in values.items() if value is not None)]
        folder = self.config.work / "explorer" / re.sub(r"[^\w.+-]", "", "_".join(parts))
        kinds = {"mean": scene.pet, "change": scene.change}
        volumes = {f"trc-{t}_desc-{kind}_pet": by[t] for kind, by in kinds.items() for t in by} | {"T1w": scene.mri}
        with atomic(folder / "views.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
        age, sex = self.factual_prompt(request.source)
        file = {} if person else {"source": Path(request.source).name, "sha256": sha256(request.source)}
        settings = synthetic_head(self.config, self.method, self.model.card.notice, self.model.origin)
        more = self.attributes.get(request.source, {})
        settings |= {"request": asdict(request) | more | file, "factual_prompt": {"age": age, "sex": sex} | more}
        settings["point_mm"] = list(point)
        for entity, volume in volumes.items():
            path = folder / f"{stem}_space-{SPACE}_{entity}.nii.gz"
            unit = scene.unit if scene.unit == "SUVR" else units(preprocess, TRACERS[0])  # no SUVR: of both tracers
            unit = T1_UNITS if entity == "T1w" else unit
            self.model.write(path, volume, settings | bids_fields(unit, preprocess.mask))
        write_json(folder / "settings.json", settings)
        return folder


class Views(anywidget.AnyWidget):
    """The pictures in the browser; they are sent as messages, see ``templates/explorer.js``."""

    _esm, _css = (Path(views.__file__).with_name("templates") / f"explorer.{kind}" for kind in ("js", "css"))


class Overlay(widgets.VBox):
    """A synthetic PET over the T1 in NiiVue, on demand: three planes and a rendering.

    A notebook can store NiiVue's volumes, which are part of its widget's state.
    """

    def __init__(self) -> None:
        choices = [("off", None), *((TRACER_TITLES[tracer], tracer) for tracer in TRACERS)]
        style, layout = {"button_width": "76px", "description_width": "52px"}, widgets.Layout(width="320px")
        self.choice = widgets.ToggleButtons(options=choices, description="NiiVue", style=style, layout=layout)
        look = {"crosshair_width_unit": "mm", "multiplanar_show_render": ipyniivue.ShowRender.ALWAYS}
        self.viewer = ipyniivue.NiiVue(height=420, is_colorbar=True, **look)
        self.columns: list[views.Column] = []
        super().__init__([self.choice])
        self.choice.observe(lambda _: self.draw(), "value")

    def show(self, columns: list[views.Column], grid: Grid) -> None:
        """Take the views' columns, and draw."""
        self.columns, self.grid = columns, grid
        self.draw()

    def draw(self) -> None:
        """Load the T1 and the chosen tracer's synthetic PET."""
        tracer, self.children = self.choice.value, [self.choice]
        if tracer is not None and self.columns:
            shown = [c for c in self.columns if c.title == "T1" or (c.tracer, c.title) == (tracer, "synthetic")]
            self.viewer.load_volumes([
                ipyniivue.Volume(
                    name=f"{column.title}.nii", data=self.grid.image(column.volume).to_bytes(), opacity=opacity,
                    colormap=column.cmap, cal_min=column.norm.vmin, cal_max=column.norm.vmax,
                ) for column, opacity in zip(shown, (1.0, 0.6), strict=True)
            ])  # fmt: skip
            self.children = [self.choice, self.viewer]


class Explorer(widgets.VBox):
    """Widgets over an `ExplorerModel`; display it in JupyterLab.

    ``person`` is shown first: ``<person>``, ``<person> <session>`` or the path of a T1; by default the first session.
    Nothing is synthesised before `start`, which a browser calls. ``request`` and ``scene`` are shown then.
    """

    def __init__(self, model: ExplorerModel, person: str | None = None) -> None:
        self.model, self._first, self._file, self._muted = model, person, "", False
        self.request: Request | None = None
        narrow = {"layout": widgets.Layout(width="268px"), "style": {"description_width": "64px"}}
        wide, file = ({"layout": widgets.Layout(width=width)} for width in ("520px", "300px"))
        late = {"continuous_update": False}
        button = {"layout": widgets.Layout(width="110px")}
        settings = model.model.card.settings
        steps = step_choices(settings)
        self.person = widgets.Dropdown(description="person", **narrow | wide)
        self.file = widgets.Text(description="or a T1", placeholder="path, then Enter", **late | narrow | file)
        self.age = widgets.IntSlider(70, *model.ages, description="age", **late | narrow)
        sexes = [*((one, one) for one in SEXES), ("no sex", None)]
        self.sex = widgets.ToggleButtons(options=sexes, value=None, style={"button_width": "76px"})
        beside = widgets.Layout(width="140px", margin="0 0 0 14px")
        self.use_age = widgets.Checkbox(False, description="use age", indent=False, layout=beside)
        self.factual = widgets.Button(description="factual", tooltip="the person's age and sex", icon="undo", **button)
        at = steps.index(getattr(settings, "sampling_steps", None) or steps[-1]) if steps else 0
        choices = {"options": steps or [("–", None)], "index": at, "disabled": not steps}
        self.steps = widgets.SelectionSlider(**choices, description="steps", **late | narrow)
        seed = model.config.seeded(model.method).seed
        self.seed = widgets.BoundedIntText(seed, 0, 2**63 - 1, description="seed", **narrow)
        self.samples = widgets.IntSlider(4, 1, 16, description="samples", **late | narrow)
        self.cuts = {
            axis: widgets.IntSlider(round(at), *map(round, FIELD_MM[axis]), description=f"{axis} (mm)", **narrow)
            for axis, at in zip("xyz", START_MM, strict=True)
        }
        button |= {"icon": "save", "button_style": "primary"}
        self.save = widgets.Button(description="export", tooltip="picture, NIfTI and settings", **button)
        self.status, self.views, self.overlay = widgets.HTML(), Views(), Overlay()
        for widget, name in ((self.age, "resdm-age"), (self.cuts["z"], "resdm-z")):
            widget.add_class(name)
        super().__init__(self._rows())
        self.person.observe(self._on_person, "value")
        self.file.observe(self._on_file, "value")
        for widget in (self.age, self.sex, self.use_age, self.steps, self.seed, self.samples):
            widget.observe(self._on_prompt, "value")
        for axis, slider in self.cuts.items():
            slider.observe(lambda _, axis=axis: self.draw(axis), "value")
        self.factual.on_click(lambda _: self._show_factual())
        self.save.on_click(lambda _: self.export())
        self.views.on_msg(self._on_message)

    def __repr__(self) -> str:
        """Without its widgets: a notebook stores this text."""
        return "Explorer"

    def _rows(self) -> list[widgets.Widget]:
        """The layout: who, prompt and place, views."""
        centred = widgets.Layout(align_items="center")
        columns = {
            "prompt": [self.age, self.sex, widgets.HBox([self.use_age, self.factual], layout=centred)],
            "sampler": [self.steps, self.seed, self.samples],
            "where (MNI), or click": list(self.cuts.values()),
        }
        style = "color:#777;font-size:11px;letter-spacing:.04em"
        heads = [widgets.HTML(f"<b style='{style}'>{title.upper()}</b>") for title in columns]
        controls = [widgets.VBox([head, *column]) for head, column in zip(heads, columns.values(), strict=True)]
        wrap = widgets.Layout(flex_flow="row wrap", grid_gap="4px 12px")
        rows = ([self.person, self.file, self.save, self.status], controls)
        shown = [self.views, *[self.overlay] * self.model.config.individual]  # a notebook may store the overlay
        return [*(widgets.HBox(row, layout=wrap) for row in rows), *shown]

    @property
    def point(self) -> views.Point:
        """Where the views are cut, MNI mm."""
        return tuple(float(slider.value) for slider in self.cuts.values())

    @property
    def source(self) -> str:
        """The chosen session or file."""
        return self._file or self.person.value

    def start(self) -> None:
        """List the test people and synthesise for the first person; a browser calls it when it shows the explorer."""
        people = self.model.people
        self._muted = True
        self.person.options = [(_session_label(key, row), key) for key, row in people.items()]
        self.person.value, self._muted = None, False
        sessions = [key for key in people if self._first in (None, key, key.split(" ")[0])]
        if sessions:
            self.person.value = sessions[0]
        else:
            self.file.value = self._first

    def _chosen(self) -> Request:
        factual_age = self.model.factual_prompt(self.source)[0]
        age = float(self.age.value) if self.use_age.value else None
        if None not in (age, factual_age) and age == round(factual_age):
            age = factual_age  # the slider has whole years; at the person's age the prompt is the factual one
        return Request(self.source, age, self.sex.value, self.steps.value, self.seed.value, self.samples.value)

    def synthesise(self) -> None:
        """Synthesise the chosen request, unless cached, and show it."""
        start, before = time.perf_counter(), self.model.synthesised
        with self._report_errors("synthesising …"):
            request = self._chosen()
            self.scene, self.request = self.model.scene(request), request
            self.show()
            count = self.model.synthesised - before
            what = f"{count} volume pairs synthesised" if count else "from memory"
            self.status.value = f"<small>{what}, {time.perf_counter() - start:.1f} s</small>"

    def show(self) -> None:
        """Send titles, colours and all planes of the scene to the browser."""
        self.columns = views.columns(self.scene)
        title, detail = self._captions()
        page = {"title": title, "detail": detail, "notice": self.model.config.notice}
        self.views.send({"page": page | views.page(self.columns, self.scene.grid)})
        self.draw()
        self.overlay.show(self.columns, self.scene.grid)

    def draw(self, planes: str = "xyz") -> None:
        """Send the slices of some planes at `point`, and the values there, to the browser."""
        if self.request is None:
            return
        grid, point = self.scene.grid, dict(zip("xyz", self.point, strict=True))
        pictures = [views.slice_png(column, grid, (axis, point[axis])) for axis in planes for column in self.columns]
        values = views.readout(self.scene, self.columns, self.point)
        self.views.send({"planes": planes, "point": point} | values, pictures)

    def _captions(self) -> tuple[str, str]:
        request, more = self.request, self.model.attributes.get(self.request.source, {})
        name = request.source if request.source in self.model.people else Path(request.source).name
        steps = f", {request.steps} steps" if request.steps else ""
        factual = prompt_text(*self.model.factual_prompt(request.source), **more)
        title = f"{name}: prompt {prompt_text(request.age, request.sex, **more)}"
        detail = f"{self.model.method}{steps}, seed {request.seed}, mean of {request.samples} samples; factual prompt: "
        return title, f"{detail}{factual}. Left is left. Synthetic, not for clinical use."

    def figure(self) -> Figure:
        """The views as a figure; without real PET where no single person may be shown in a file."""
        scene = self.scene if self.model.config.individual else replace(self.scene, real={})
        title, detail = self._captions()
        return views.orthogonal_views(scene, self.point, title=title, detail=detail, notice=self.model.config.notice)

    def export(self) -> Path | None:
        """Write the shown volumes, name the folder above the views, return it; ``None`` if nothing was written."""
        if self.request is None:
            return None
        with self._report_errors("writing …"):
            folder = self.model.export(self.request, self.scene, self.figure(), self.point)
            self.status.value = f"<small>written: <code>{html.escape(str(folder))}</code></small>"
            return folder

    @contextmanager
    def _report_errors(self, action: str) -> Iterator[None]:
        """Show a busy sign, and errors above the views; the notebook continues."""
        self.status.value = ""
        self.views.send({"busy": action})
        try:
            yield
        except (ValueError, OSError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
            self.status.value = f"<span style='color:#B00020'>{html.escape(str(error))}</span>"
        finally:
            self.views.send({"busy": ""})

    def _show_factual(self) -> None:
        """Set the person's factual prompt, and draw once."""
        age, sex = self.model.factual_prompt(self.source)
        self._muted = True
        self.age.value, self.sex.value, self.use_age.value = round(age or self.age.value), sex, age is not None
        self._muted = False
        self.synthesise()

    def _on_message(self, _: Any, message: dict[str, Any], __: Any) -> None:
        """A browser is ready for pictures, or somebody clicked on one."""
        match message:
            case {"point": place}:
                for axis, slider in self.cuts.items():
                    slider.value = place[axis]
                self.views.send({"moved": True})
            case {"ready": True} if self.request is not None:
                self.show()
            case {"ready": True}:
                self.start()

    def _on_person(self, _: Any) -> None:
        if not self._muted and self.person.value is not None:
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


def _session_label(key: str, row: dict[str, Any]) -> str:
    """``sub-1 ses-2 · 74 years, F · AD · real Aβ-PET, tau-PET``."""
    real = ", ".join(TRACER_TITLES[tracer] for tracer in TRACERS if row[f"present_{tracer}"] == 1)
    known = [key, f"{row['age']:.0f} years, {row['sex']}", str(row.get("diagnosis") or ""), real and f"real {real}"]
    return " · ".join(part for part in known if part not in ("", "nan"))
