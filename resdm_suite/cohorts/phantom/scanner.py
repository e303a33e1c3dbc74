"""Acquisition of a phantom: pose, voxel grid, resolution, noise and scale of a T1 and of a PET."""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from resdm.settings import TRACERS
from resdm_suite.cohorts.phantom.anatomy import Template, displacement_on_axes, make_template, random_field, thin_cortex
from resdm_suite.cohorts.phantom.people import AGE_CENTRE, FIELD, random_stream
from resdm_suite.cohorts.phantom.uptake import regional_suvr, tissue_uptake
from resdm_suite.profiles import Config, PhantomConfig

_T1 = {"gm": 0.58, "wm": 0.92, "csf": 0.17}
_SCALP_MM = (2.0, 8.0, 14.0)  # from the brain to the inside of the skull, its outside, the skin
_T1_NOISE = 0.022  # of the white-matter signal
_PET_NOISE = 0.05  # SUVR where the SUVR is 1; grows with the square root, as counts do
_FOV_MM = (192.0, 236.0, 204.0)  # right–left, front–back, up–down
_T1_AXES = ("RAS", "LPS", "PSR")  # how a scanner stores its axes; PSR: sagittal slices
_PET_AXES = ("RAS", "LAS", "LPS")

_TRACERS = {  # name, MBq, injection and length of the frames in seconds
    "18FAV45": ("18F-AV-45 (florbetapir)", 370.0, -3000, 1200),
    "18FFBB": ("18F-florbetaben", 300.0, -5400, 1200),
    "18FAV1451": ("18F-AV-1451 (flortaucipir)", 370.0, -4800, 1800),
}


class Acquisition(NamedTuple):
    """A scan: voxels (X, Y, Z) or (X, Y, Z, T), affine, BIDS sidecar, and the truth about it."""

    data: np.ndarray
    affine: np.ndarray
    sidecar: dict[str, Any]
    truth: dict[str, Any]  # `world_to_person` and, of a PET, `pet_to_t1`, `fwhm_mm`, `gain`


@dataclass(frozen=True)
class Visit:
    """One person in one session: what both scanners image."""

    settings: PhantomConfig
    template: Template
    tissues: tuple[np.ndarray, ...]
    personal: dict[str, np.ndarray]  # by tracer: uptake of this person that nothing predicts
    field: np.ndarray  # displacement on the anatomy grid
    person_to_mni: np.ndarray
    decades: float  # of age, from AGE_CENTRE
    sex: float  # women 1, men −1

    @property
    def margin(self) -> float:
        """How far the scalp reaches from the brain, in mm."""
        return _SCALP_MM[-1] if self.settings.scalp else 0.0

    @property
    def scalp(self) -> np.ndarray:
        """Skull (dark) and scalp (bright) around the brain, as a T1 shows them: a simple shell."""
        inner, skull, skin = (self.template.air_mm <= mm for mm in _SCALP_MM)
        return np.select([inner, skull, skin], [0.0, 0.12, 0.75], 0.0).astype(np.float32)

    def uptake(self, tracer: str, label: str, **causes: Any) -> np.ndarray:
        """`tissue_uptake` of this person, with the scalp if there is one."""
        decades, sex = self.settings.age_effect * self.decades, self.settings.sex_effect * self.sex
        uptake = tissue_uptake(self.template, self.tissues, tracer, label, decades=decades, sex=sex, **causes)
        return uptake + 0.35 * (self.scalp > 0.3) if self.settings.scalp else uptake

    def field_of_view(self, pet: bool) -> np.ndarray:
        """Size of a scan along right–left, front–back and up–down, in mm."""
        return np.array(_FOV_MM) + (12 if pet else 0) + 1.8 * self.margin

    def sample(
        self, maps: list[tuple[np.ndarray, int]], world_to_mni: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
    ) -> list[np.ndarray]:
        """Maps of the anatomy grid in a scan's voxels: one interpolation through affine and deformation.

        ``maps`` holds pairs of a map and its spline order. Far from the brain all is 0.
        """
        spacing = self.template.grid.voxel_mm
        step = float(np.mean(np.linalg.norm(affine[:3, :3], axis=0)))
        matrix = np.linalg.inv(self.template.grid.affine) @ world_to_mni @ affine  # scan voxel → anatomy voxel
        index = np.ix_(*(np.arange(n) for n in shape))
        linear = [sum(matrix[c, i] * index[i] for i in range(3)) + matrix[c, 3] for c in range(3)]  # 3 × (X, Y, Z)
        limits = np.array(self.template.grid.shape) - 1
        nearest = [np.clip(np.rint(axis), 0, limit).astype(np.intp) for axis, limit in zip(linear, limits, strict=True)]
        head = self.template.air_mm[tuple(nearest)] <= 16 + self.margin  # most of a scan is air: leave it out
        points = np.stack([axis[head] for axis in linear])  # (3, N)
        points += np.stack([ndimage.map_coordinates(f, points, order=1, mode="nearest") for f in self.field]) / spacing
        sampled = []
        for source, order in maps:
            if order and step > 1.2 * spacing:  # a voxel averages over its size
                source = ndimage.gaussian_filter(source, 0.35 * np.sqrt(step**2 - spacing**2) / spacing)
            whole = np.zeros(shape, source.dtype)
            whole[head] = ndimage.map_coordinates(source, points, order=order, mode="constant")
            sampled.append(whole)
        return sampled


def make_visit(config: Config, index: int, person: dict[str, Any], session: dict[str, Any]) -> Visit:
    """The person in a session, from the truth about both, deformation included."""
    settings = config.cohort.phantom
    template, decades = make_template(settings.anatomy_mm), (session["age"] - AGE_CENTRE) / 10
    rng = random_stream(config.seed, index, FIELD)
    ribbon = 0.04 * random_field(rng, template, 60, (10, 22))  # a person's thickness: the MRI shows it
    shared = random_field(rng, template, 40, (14, 28))
    return Visit(
        settings=settings,
        template=template,
        tissues=thin_cortex(template, settings.age_atrophy * decades, session["severity"], ribbon),
        personal={
            tracer: 0.06 * (0.6 * shared + 0.8 * random_field(rng, template, 40, (14, 28))) for tracer in TRACERS
        },
        field=displacement_on_axes(session["deformation"], template.grid.axes),
        person_to_mni=np.array(person["person_to_mni"]),
        decades=decades,
        sex={"F": 1.0, "M": -1.0}[person["sex"]],
    )


def scan_t1(rng: np.random.Generator, visit: Visit) -> tuple[Acquisition, np.ndarray]:
    """A T1-weighted image in scanner units, and the pose of the head (person → world)."""
    settings = visit.settings
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = _tilt(rng, (1, 8)), rng.uniform(-15, 15, 3)
    contrast = [level * rng.normal(1, 0.03) for level in _T1.values()]
    signal = sum(level * tissue for level, tissue in zip(contrast, visit.tissues, strict=True))
    if settings.scalp:
        signal = signal + visit.scalp
    shape, affine = _scan_grid(rng, settings.t1_voxel_mm, visit.field_of_view(False), _T1_AXES, pose[:3, 3])
    world_to_person = np.linalg.inv(pose)
    to_mni = visit.person_to_mni @ world_to_person
    signal, brain = visit.sample([(signal, 1), (visit.template.brain, 1)], to_mni, shape, affine)
    for axis, n in enumerate(signal.shape):  # bias field: the exponential of a quadratic
        u = np.linspace(-1, 1, n)
        bias = np.exp(rng.normal(0, 0.06) * u + rng.normal(0, 0.07) * u**2)
        signal *= bias.reshape([-1 if i == axis else 1 for i in range(3)]).astype(np.float32)
    noise = settings.noise * _T1_NOISE * rng.uniform(0.7, 1.4)
    real, imaginary = (noise * rng.standard_normal(signal.shape, np.float32) for _ in range(2))
    signal = np.hypot(signal + real, imaginary)  # Rician
    if not settings.scalp:
        signal[brain < 0.5] = 0
    sidecar = json.loads(bids_text("T1w.json")) | {"SkullStripped": not settings.scalp}
    signal = np.rint(signal * rng.uniform(600, 1100))
    return Acquisition(signal, affine, sidecar, {"world_to_person": world_to_person}), pose


def scan_pet(
    rng: np.random.Generator, visit: Visit, uptake: np.ndarray, tracer: str, label: str, pose: np.ndarray
) -> tuple[Acquisition, dict[str, float], float]:
    """A PET in Bq/mL, and the regional SUVR and cortical summary that it holds without noise.

    ``pose`` (person → world) is the T1's; the head moves between the scans.
    """
    settings, template = visit.settings, visit.template
    middle, away = pose[:3, 3], rng.normal(size=3)
    away *= rng.uniform(2, 10) / np.linalg.norm(away)
    pet_to_t1 = np.eye(4)  # PET world → T1 world, a rotation about the middle of the head
    pet_to_t1[:3, :3] = _tilt(rng, (2, 8))
    pet_to_t1[:3, 3] = middle - pet_to_t1[:3, :3] @ (middle + away)
    world_to_person = np.linalg.inv(pose) @ pet_to_t1
    shape, affine = _scan_grid(rng, settings.pet_voxel_mm, visit.field_of_view(True), _PET_AXES, middle + away)
    to_mni = visit.person_to_mni @ world_to_person
    uptake, labels = visit.sample([(uptake, 1), (template.labels, 0)], to_mni, shape, affine)
    fwhm = float(rng.uniform(*settings.pet_fwhm_mm))
    image = ndimage.gaussian_filter(uptake, [fwhm / 2.3548 / v for v in settings.pet_voxel_mm])
    reference, regional, summary = regional_suvr(image, labels, template.names, tracer)
    image /= np.float32(reference)  # the reference region, at this resolution, has SUVR 1
    frames = settings.pet_frames
    amount = settings.noise * _PET_NOISE * rng.uniform(0.8, 1.3) * np.sqrt(frames)
    spread = np.float32(amount) * np.sqrt(np.maximum(image, 0.01))
    series = [image + spread * _grain(rng, image.shape, settings.pet_voxel_mm) for _ in range(frames)]
    series = np.maximum(series[0] if frames == 1 else np.stack(series, axis=-1), 0)
    gain = float(np.exp(rng.normal(np.log(6000), 0.25)))  # Bq/mL where the SUVR is 1
    truth = {"world_to_person": world_to_person, "pet_to_t1": pet_to_t1.tolist(), "fwhm_mm": fwhm, "gain": gain}
    scan = Acquisition(series * np.float32(gain), affine, _pet_sidecar(label, frames, fwhm), truth)
    return scan, regional, summary


def _tilt(rng: np.random.Generator, degrees: tuple[float, float]) -> np.ndarray:
    """A rotation (3, 3) about a random axis by a random angle."""
    axis = rng.normal(size=3)
    return Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.deg2rad(rng.uniform(*degrees))).as_matrix()


def _scan_grid(
    rng: np.random.Generator, voxel_mm: tuple[float, ...], fov_mm: np.ndarray, axes: tuple[str, ...], centre: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and oblique affine of a scan around ``centre``; ``axes``: orders in which its axes may be stored."""
    code = axes[rng.integers(len(axes))]
    direction = np.zeros((3, 3))
    for stored, (axis, sign) in enumerate(axcodes2ornt(code)):
        direction[int(axis), stored] = sign
    shape = tuple(int(np.ceil(mm / v)) for mm, v in zip(np.abs(direction.T) @ fov_mm, voxel_mm, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = _tilt(rng, (3, 9)) @ direction * np.array(voxel_mm)
    affine[:3, 3] = centre + rng.uniform(-4, 4, 3) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    header = nib.Nifti1Header()
    header.set_qform(affine, code=1)
    return shape, header.get_qform()  # rounded to a float32 quaternion, so that qform and sform agree


def _grain(rng: np.random.Generator, shape: tuple[int, ...], voxel_mm: tuple[float, ...]) -> np.ndarray:
    """Noise of unit variance with the grain of a reconstruction filter (4.5 mm FWHM)."""
    noise = rng.standard_normal(shape, np.float32)
    for axis, voxel in enumerate(voxel_mm):
        sigma = 4.5 / 2.3548 / voxel
        impulse = np.zeros(2 * int(4 * sigma + 1) + 1)
        impulse[len(impulse) // 2] = 1
        noise = ndimage.gaussian_filter1d(noise, sigma, axis=axis, mode="wrap")
        noise /= np.float32(np.linalg.norm(ndimage.gaussian_filter1d(impulse, sigma, mode="constant")))
    return noise


def bids_text(name: str) -> str:
    """A file of BIDS metadata that is the same in all phantom cohorts."""
    return resources.files(__package__).joinpath("bids", name).read_text(encoding="utf-8")


def _pet_sidecar(label: str, frames: int, fwhm: float) -> dict[str, Any]:
    name, radioactivity, injection, length = _TRACERS[label]
    return json.loads(bids_text("pet.json")) | {
        "ManufacturersModelName": f"simulated, {fwhm:.1f} mm FWHM",
        "TracerName": name,
        "InjectedRadioactivity": radioactivity,
        "InjectionStart": injection,
        "FrameTimesStart": [round(length / frames * i, 3) for i in range(frames)],
        "FrameDuration": [round(length / frames, 3)] * frames,
    }
