"""The explorer: one person's synthesis under any prompt, in a notebook.

Moving age, sex, steps, seed or the number of samples synthesises; moving x, y or z only cuts. What was synthesised once
is kept, so going back costs nothing. All samples of a prompt use the same noise as those of any other prompt: what
differs between them is the prompt's doing. What is shown is the mean over samples; their spread is not, as it is
no error, and no status is derived (see `resdm_suite.apps.single_scan`).
"""

from __future__ import annotations

import html
import io
import re
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from resdm.cpu_runtime import set_up
from resdm.io import atomic, sha256, write_json
from resdm.settings import AGE_RANGE, TRACERS, MethodConfig, check_person, derive_seed
from resdm_suite.apps.model_card import check_model
from resdm_suite.apps.prediction import Model, bids_prefix, check_phantom
from resdm_suite.evaluation.image_quality import read_index, read_volume
from resdm_suite.evaluation.suvr import regional_means, to_suvr
from resdm_suite.preprocessing.volumes import preprocess_mri
from resdm_suite.profiles import Config
from resdm_suite.reporting.slices import FIELD_MM
from resdm_suite.reporting.style import TRACER_TITLES
from resdm_suite.reporting.views import Scene, orthogonal_views

MOST_BYTES = 500e6
"""Of samples that are kept; the ones not looked at longest go first."""

START_MM = (7.0, -58.0, 24.0)
"""Where the views are cut at first: through the precuneus."""


@dataclass(frozen=True)
class Request:
    """What a synthesis depends on.

    Parameters
    ----------
    source : str
        ``<person> <session>`` of the test people, or the path of a T1.
    age, sex
        What the prompt says; ``None`` leaves it out.
    steps : int or None
        Sampling steps; ``None`` where the method has none.
    seed : int
    samples : int
    """

    source: str
    age: float | None
    sex: str | None
    steps: int | None
    seed: int
    samples: int


def step_choices(settings: MethodConfig) -> list[int]:
    """Numbers of sampling steps that a method can take; empty for one that takes none."""
    match settings.kind:
        case "residual_diffusion":
            return list(range(1, settings.steps + 1))
        case "released":
            return list(range(1, 16))
        case "ddpm":
            return [n for n in range(1, min(settings.steps, 250) + 1) if settings.steps % n == 0]
    return []


class Studio:
    """A model, its test people, and what it made of them.

    Parameters
    ----------
    config : Config
    method : str
    allow_phantom_model : bool
        Lets a phantom-trained model look at a file; see `resdm_suite.apps.prediction.check_phantom`.
    """

    def __init__(self, config: Config, method: str = "ResDM", allow_phantom_model: bool = False) -> None:
        self.config, self.method = config, method
        self.model = Model.load(config.model(method))
        check_model(self.model.card, config, method)
        set_up(config.training)
        index = read_index(config)
        keys = index["person"] + " " + index["session"]
        self.people: dict[str, dict[str, Any]] = dict(zip(keys, index.to_dict("records"), strict=True))
        low, high = (int(AGE_RANGE[0]), int(AGE_RANGE[1]))
        self.ages = (max(low, int(index["age"].min()) - 10), min(high, int(index["age"].max()) + 10))
        self.synthesised = 0  # volumes made, not taken from memory
        self._allow = allow_phantom_model
        self._mri: dict[str, np.ndarray] = {}
        self._samples: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()

    def own(self, source: str) -> tuple[float | None, str | None]:
        """Age and sex of the factual prompt: none for a file, of which nothing is known."""
        row = self.people.get(source)
        return (None, None) if row is None else (float(row["age"]), str(row["sex"]))

    def mri(self, source: str) -> np.ndarray:
        """T1 on the model's grid (X, Y, Z), intensities in [0, 1].

        Raises
        ------
        FileNotFoundError
            Neither a test person nor a file.
        resdm_suite.apps.prediction.SynthesisError
            A file, and a model that has seen phantoms only.
        """
        if source not in self._mri:
            if source in self.people:
                volume = read_volume(self.config.volumes / self.people[source]["t1w"], self.model.grid)
            elif Path(source).is_file():
                check_phantom(self.model.card, self._allow)
                volume, _ = preprocess_mri(Path(source), self.model.card.config)
            else:
                raise FileNotFoundError(
                    f"{source}: neither a T1 file nor one of the {len(self.people)} test sessions (<person> <session>)"
                )
            self._mri[source] = volume
        return self._mri[source]

    def sample(self, request: Request, number: int) -> np.ndarray:
        """One sample of both PETs (2, X, Y, Z), in [0, 1]; from memory where it is there."""
        key = (request.source, request.age, request.sex, request.steps, request.seed, number)
        if key in self._samples:
            self._samples.move_to_end(key)
            return self._samples[key]
        check_person(request.age, request.sex, "prompt")
        seed = derive_seed(request.seed, request.source, number)
        mri = self.mri(request.source)
        pet = self.model.synthesise(mri, request.age, request.sex, seed=seed, steps=request.steps)
        self.synthesised += 1
        self._samples[key] = pet
        while sum(kept.nbytes for kept in self._samples.values()) > MOST_BYTES and len(self._samples) > 1:
            self._samples.popitem(last=False)
        return pet

    def scene(self, request: Request) -> Scene:
        """What the views show for a request: PETs and change in SUVR, means over samples."""
        made = self._suvr(request)
        age, sex = self.own(request.source)
        factual = made if (age, sex) == (request.age, request.sex) else self._suvr(replace(request, age=age, sex=sex))
        change = {tracer: made[tracer] - factual[tracer] for tracer in TRACERS}
        return Scene(grid=self.model.grid, mri=self.mri(request.source), pet=made, change=change)

    def _suvr(self, request: Request) -> dict[str, np.ndarray]:
        """Mean over samples by tracer (X, Y, Z), SUVR."""
        stack = np.stack([self.sample(request, number) for number in range(request.samples)])  # (K, 2, X, Y, Z)
        ranges = self.model.card.config.preprocess.suvr_range
        return {tracer: to_suvr(stack[:, i].mean(axis=0), ranges[tracer]) for i, tracer in enumerate(TRACERS)}

    def export(self, request: Request, scene: Scene, picture: bytes, point: tuple[float, float, float]) -> Path:
        """Write what is shown: the picture, every volume as NIfTI (SUVR, MNI152) and the settings.

        Returns
        -------
        Path
            The folder, ``work/<profile>/explorer/<source>_<prompt>…``; the same request writes the same folder again.
        """
        person = request.source in self.people
        stem = request.source.replace(" ", "_") if person else bids_prefix(request.source)
        said = [f"age-{request.age:g}" if request.age is not None else "", f"sex-{request.sex}" if request.sex else ""]
        said += [
            f"steps-{request.steps}" if request.steps else "",
            f"seed-{request.seed}",
            f"samples-{request.samples}",
        ]
        name = re.sub(r"[^\w.+-]", "", "_".join([stem, self.method, *filter(None, said)]))
        folder = self.config.work / "explorer" / name
        kinds = {"mean": scene.pet, "change": scene.change}
        volumes = {f"trc-{t}_desc-{kind}_pet": by[t] for kind, by in kinds.items() for t in by} | {"T1w": scene.mri}
        for entity, volume in volumes.items():
            image = scene.grid.image(volume.astype(np.float32))
            image.header["descrip"] = self.model.card.notice.encode("ascii", "replace")[:79]
            with atomic(folder / f"{stem}_space-MNI152_{entity}.nii.gz") as temporary:
                nib.save(image, temporary)
        with atomic(folder / "views.png") as temporary:
            temporary.write_bytes(picture)
        own_age, own_sex = self.own(request.source)
        asked = asdict(request) | {"source": request.source if person else Path(request.source).name}
        source = {} if person else {"sha256": sha256(request.source)}
        card = self.model.card
        settings = {
            "synthetic": True,
            "notice": card.notice,
            "cohort_notice": self.config.notice,
            "method": self.method,
            "model": {"sha256": card.digest, "profile": card.config.profile, "step": card.step},
            "request": asked | source,
            "factual_prompt": {"age": own_age, "sex": own_sex},
            "point_mm": list(point),
            "units": {"pet": "SUVR", "T1w": "intensity in [0, 1]"},
        }
        write_json(folder / "settings.json", settings)
        return folder


class Explorer(widgets.VBox):
    """The widgets over a `Studio`; display it in JupyterLab.

    Parameters
    ----------
    studio : Studio
    person : str, optional
        ``<person>``, ``<person> <session>`` or the path of a T1 to begin with; the first test session by default.

    Attributes
    ----------
    request : Request
        What is shown.
    scene : Scene
    drawn : int
        Pictures drawn so far.
    """

    def __init__(self, studio: Studio, person: str | None = None) -> None:
        self.studio, self.drawn, self._quiet = studio, 0, False
        source = self._source(person)
        own = studio.own(source)
        narrow = {"layout": widgets.Layout(width="268px"), "style": {"description_width": "64px"}}
        late = {"continuous_update": False} | narrow
        people = [(self._label(key), key) for key in studio.people]
        value = source if source in studio.people else None
        self.person = widgets.Dropdown(options=people, value=value, description="person", **narrow)
        self.file = widgets.Text("" if value else source, description="or a T1", placeholder="path, then Enter", **late)
        self.age = widgets.IntSlider(round(own[0] or 70), *studio.ages, description="age", **late)
        self.sex = widgets.ToggleButtons(
            options=[("F", "F"), ("M", "M"), ("none", None)], value=own[1], style={"button_width": "56px"}
        )  # fmt: skip
        self.say_age = widgets.Checkbox(own[0] is not None, description="say the age", indent=False,
                                        layout=widgets.Layout(width="140px", margin="0 0 0 14px"))  # fmt: skip
        self.factual = widgets.Button(description="factual", tooltip="the person's own age and sex", icon="undo",
                                      layout=widgets.Layout(width="110px"))  # fmt: skip
        choices = step_choices(studio.model.card.settings)
        default = getattr(studio.model.card.settings, "sampling_steps", None)
        self.steps = widgets.SelectionSlider(
            options=choices or [("–", None)], value=(default or choices[-1]) if choices else None,
            disabled=not choices, description="steps", **late,
        )  # fmt: skip
        self.seed = widgets.BoundedIntText(studio.config.seeded(studio.method).seed, 0, 2**31 - 1, description="seed",
                                           **narrow)  # fmt: skip
        self.samples = widgets.IntSlider(4, 1, 16, description="samples", **late)
        self.cuts = [
            widgets.IntSlider(round(at), round(FIELD_MM[axis][0]), round(FIELD_MM[axis][1]), description=f"{axis} (mm)",
                              **late)
            for axis, at in zip("xyz", START_MM, strict=True)
        ]  # fmt: skip
        self.save = widgets.Button(description="export", tooltip="picture, NIfTI and settings", icon="save",
                                   button_style="primary", layout=widgets.Layout(width="110px"))  # fmt: skip
        self.status = widgets.HTML()
        self.readout = widgets.HTML()
        self.image = widgets.Image(format="png", layout=widgets.Layout(width="100%", max_width="1500px"))
        self.image.add_class("resdm-views")
        self.age.add_class("resdm-age")
        self.cuts[2].add_class("resdm-z")
        beside = widgets.Layout(align_items="center")
        super().__init__(
            [
                widgets.HBox([
                    widgets.VBox([_heading("who"), self.person, self.file]),
                    widgets.VBox([_heading("prompt"), self.age, widgets.HBox([_label("sex"), self.sex]),
                                  widgets.HBox([self.say_age, self.factual], layout=beside)]),
                    widgets.VBox([_heading("sampler"), self.steps, self.seed, self.samples]),
                    widgets.VBox([_heading("where (MNI)"), *self.cuts]),
                ], layout=widgets.Layout(flex_flow="row wrap", grid_gap="4px 12px")),
                self.image,
                self.readout,
                widgets.HBox([self.save, self.status], layout=beside),
            ]
        )  # fmt: skip
        self._file = "" if value else source
        self.person.observe(self._on_person, "value")
        self.file.observe(self._on_file, "value")
        for widget in (self.age, self.sex, self.say_age, self.steps, self.seed, self.samples):
            widget.observe(self._on_prompt, "value")
        for widget in self.cuts:
            widget.observe(self._on_cut, "value")
        self.factual.on_click(lambda _: self._to_own())
        self.save.on_click(lambda _: self.export())
        self.synthesise()

    # ── what is asked ──

    @property
    def point(self) -> tuple[float, float, float]:
        """Where the views are cut, MNI mm."""
        return tuple(float(slider.value) for slider in self.cuts)

    def _source(self, person: str | None) -> str:
        people = self.studio.people
        if person is None:
            return next(iter(people))
        return next((key for key in people if person in (key, key.split(" ")[0])), person)

    def _label(self, key: str) -> str:
        row = self.studio.people[key]
        known = [str(row.get("diagnosis") or ""), f"{row['age']:.0f} years", str(row["sex"])]
        return f"{key} ({', '.join(part for part in known if part and part != 'nan')})"

    def _asked(self) -> Request:
        source = self._file or self.person.value
        own = self.studio.own(source)[0]
        age = float(self.age.value) if self.say_age.value else None
        if age is not None and own is not None and age == round(own):
            age = own  # the slider holds whole years; at the person's own it says what the person's prompt says
        return Request(source, age, self.sex.value, self.steps.value, self.seed.value, self.samples.value)

    # ── what happens ──

    def synthesise(self) -> None:
        """Make what is asked for, where it is not in memory, and draw it."""
        start, before = time.perf_counter(), self.studio.synthesised
        with self._reporting("synthesising …"):
            request = self._asked()
            self.scene = self.studio.scene(request)
            self.request = request
            self.draw()
            made = self.studio.synthesised - before
            what = f"{made} volume pairs synthesised" if made else "from memory"
            self.status.value = f"<small>{what}, {time.perf_counter() - start:.1f} s</small>"

    def draw(self) -> None:
        """Cut the volumes at `point`."""
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=120, metadata={"Software": None})
        self.image.value = buffer.getvalue()
        self.drawn += 1
        self.readout.value = _values(self.scene, self.point)

    def figure(self) -> Figure:
        """The views as a figure."""
        asked, own = self.request, self.studio.own(self.request.source)
        said = ", ".join([f"{asked.age:g} years" if asked.age is not None else "no age", asked.sex or "no sex"])
        factual = ", ".join([f"{own[0]:g} years" if own[0] is not None else "no age", own[1] or "no sex"])
        name = asked.source if asked.source in self.studio.people else Path(asked.source).name
        steps = f", {asked.steps} steps" if asked.steps else ""
        return orthogonal_views(
            self.scene, self.point,
            title=f"{name}: prompt {said}",
            detail=f"{self.studio.method}{steps}, seed {asked.seed}, mean of {asked.samples} samples; factual prompt: "
            f"{factual}. Left is left. Synthetic, not for clinical use.",
            notice=self.studio.config.notice,
        )  # fmt: skip

    def export(self) -> Path | None:
        """Write what is shown; the folder is named below the picture. ``None`` where nothing is, or it failed."""
        if not self.drawn:
            return None
        with self._reporting("writing …"):
            folder = self.studio.export(self.request, self.scene, self.image.value, self.point)
            self.status.value = f"<small>written: <code>{html.escape(str(folder))}</code></small>"
            return folder

    @contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        """Errors are said below the picture, where the user looks; the notebook goes on."""
        self.status.value = f"<small>{doing}</small>"
        try:
            yield
        except (ValueError, OSError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
            self.status.value = f"<span style='color:#B00020'>{html.escape(str(error))}</span>"

    def _to_own(self) -> None:
        """The person's own prompt, drawn once."""
        age, sex = self.studio.own(self._file or self.person.value)
        self._quiet = True
        self.age.value, self.sex.value, self.say_age.value = round(age or self.age.value), sex, age is not None
        self._quiet = False
        self.synthesise()

    def _on_person(self, _: Any) -> None:
        if self.person.value is not None:
            self._quiet, self._file = True, ""
            self.file.value = ""
            self._to_own()

    def _on_file(self, change: dict[str, Any]) -> None:
        if not self._quiet and change["new"].strip():
            self._quiet, self._file = True, change["new"].strip()
            self.person.value = None
            self._to_own()

    def _on_prompt(self, _: Any) -> None:
        if not self._quiet:
            self.synthesise()

    def _on_cut(self, _: Any) -> None:
        if self.drawn:
            with self._reporting(""):
                self.draw()


def explore(
    config: Config, method: str = "ResDM", person: str | None = None, *, allow_phantom_model: bool = False
) -> Explorer:
    """The explorer of a profile's trained method.

    Parameters
    ----------
    config : Config
    method : str
    person : str, optional
        Whom to begin with: a test person, ``<person> <session>``, or the path of a T1.
    allow_phantom_model : bool
        See `Studio`.
    """
    return Explorer(Studio(config, method, allow_phantom_model), person)


def _heading(text: str) -> widgets.HTML:
    return widgets.HTML(f"<b style='color:#777;font-size:11px;letter-spacing:.04em'>{text.upper()}</b>")


def _label(text: str) -> widgets.HTML:
    return widgets.HTML(
        f"<div style='text-align:right;width:60px;font-size:13px'>{text}</div>", layout=widgets.Layout(margin="2px 4px")
    )


def _values(scene: Scene, point: tuple[float, float, float]) -> str:
    """The voxel under the cross hairs and the cortical summary, as an HTML table."""
    head = "<tr><th></th><th>SUVR here</th><th>change</th><th>cortical summary</th><th>change</th></tr>"
    rows = []
    for tracer, here in scene.at(point).items():
        summary, moved = (
            regional_means(volume, scene.grid, tracer)["summary"]
            for volume in (scene.pet[tracer], scene.change[tracer])
        )
        cells = [f"{here['pet']:.2f}", f"{here['change']:+.3f}", f"{summary:.3f}", f"{moved:+.3f}"]
        cells = [cell.replace("-", "−") for cell in cells]
        text = "".join(f"<td style='padding:0 14px;text-align:right'>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td>{TRACER_TITLES[tracer]}</td>{text}</tr>")
    return f"<table style='font-size:12px;line-height:1.5'>{head}{''.join(rows)}</table>"
