"""The phantom cohort: reproducible bytes, BIDS layout, and images that agree with the truth."""

import dataclasses
import json
import re
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import digests, times
from scipy import ndimage, stats

from resdm.settings import ConfigError
from resdm_suite.anatomy import REFERENCE, Grid, mni_map, regions
from resdm_suite.cohorts.assembly import find_sessions
from resdm_suite.cohorts.phantom import PhantomError, dataset, displacement, write_phantoms
from resdm_suite.cohorts.phantom import anatomy as phantom_anatomy
from resdm_suite.cohorts.phantom.people import AGE_CENTRE, draw_person
from resdm_suite.cohorts.phantom.truth import average_regions
from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing.volumes import preprocess
from resdm_suite.profiles import CohortConfig, Config, PhantomConfig, load_config
from resdm_suite.records import RecordError

GRID = Grid((32, 32, 32), 6.0)


def profile(root: Path, seed: int = 0, **settings) -> Config:
    small = {"people": 3, "anatomy_mm": 4.0, "t1_voxel_mm": (5.0, 5.0, 6.0), "pet_voxel_mm": (5.0, 5.0, 5.0)}
    cohort = CohortConfig(phantom=PhantomConfig(**small | settings))
    return Config(profile="test", seed=seed, cohort=cohort, root=root)


def write(root: Path, **settings) -> Config:
    config = profile(root, **settings)
    write_phantoms(config, progress=False)
    return config


def truth(config: Config) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((config.work / "truth").glob("sub-*.json"))]


def baseline(config: Config) -> pd.DataFrame:
    return pd.read_csv(config.work / "truth" / "people.csv").drop_duplicates("person").set_index("person")


def sample(config: Config, scan: dict, mni: np.ndarray) -> np.ndarray:
    """Values of a scan at MNI points (3, …), through the true affine alone."""
    image = nib.load(config.source_root / scan["path"])
    to_voxel = np.linalg.inv(np.array(scan["world_to_mni"]) @ image.affine)
    points = np.tensordot(to_voxel[:3, :3], mni, 1) + to_voxel[:3, 3].reshape(3, *[1] * (mni.ndim - 1))
    return ndimage.map_coordinates(image.get_fdata(dtype=np.float32), points, order=1)


def undo(deformation: dict, template: np.ndarray) -> np.ndarray:
    """Position of the template's anatomy at ``template`` (N, 3) in the affinely aligned person."""
    points = template
    for _ in range(15):
        points = template - displacement(deformation, points)
    return points


@cache
def region_points(name: str) -> np.ndarray:
    grid = Grid((50, 58, 52), 4.0)
    return grid.mm()[:, regions(grid)[name]].T


def places(session: dict, names: list[str]) -> dict[str, np.ndarray]:
    """Where the regions lie in a person, by the written deformation alone."""
    return {name: undo(session["deformation"], region_points(name)) for name in names}


def measure(config: Config, scan: dict, where: dict[str, np.ndarray], reference: str) -> dict[str, float]:
    """SUVR by region, read from the image with nothing but the written truth of transforms and deformation."""
    mean = {name: float(sample(config, scan, points.T).mean()) for name, points in where.items()}
    return {name: value / mean[reference] for name, value in mean.items()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Config:
    """Eighty people at 6 mm."""
    voxels = {"t1_voxel_mm": (5.0, 5.0, 5.5), "pet_voxel_mm": (5.0, 5.0, 6.0)}
    return write(tmp_path_factory.mktemp("cohort"), people=80, **voxels)


QUIET = {"people": 12, "noise": 0.0, "t1_voxel_mm": (4.0,) * 3, "pet_voxel_mm": (3.0,) * 3}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Config:
    """Twelve people, finer, without noise."""
    return write(tmp_path_factory.mktemp("quiet"), **QUIET)


@pytest.fixture(scope="module")
def null(tmp_path_factory) -> Config:
    """The same twelve without the planted age and sex effects."""
    return write(tmp_path_factory.mktemp("null"), **QUIET, age_effect=0.0, sex_effect=0.0)


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────


def test_bytes_follow_from_the_seed_and_the_persons_number_alone(tmp_path):
    first, again = write(tmp_path / "a", people=4), profile(tmp_path / "b", people=4)
    write_phantoms(again, jobs=2, progress=False)
    assert digests(first.work) == digests(again.work)
    assert len(digests(first.source_root, "*.nii.gz")) >= 8
    other = write(tmp_path / "c", seed=1, people=2)
    mine, theirs = digests(first.source_root, "*_T1w.nii.gz"), digests(other.source_root, "*_T1w.nii.gz")
    assert not set(mine.values()) & set(theirs.values())
    few = write(tmp_path / "few", people=2)
    assert digests(few.source_root / "sub-0002") == digests(first.source_root / "sub-0002")
    assert digests(write(tmp_path / "few", people=4).work) == digests(first.work)  # grows in place, without a warning
    shrunk = write(tmp_path / "few", people=2)
    assert sorted(p.name for p in shrunk.source_root.glob("sub-*")) == ["sub-0001", "sub-0002"]
    assert len(pd.read_csv(shrunk.source_root / "participants.tsv", sep="\t")) == 2


def test_second_call_writes_nothing_and_a_killed_one_continues(tmp_path, monkeypatch):
    config = profile(tmp_path)
    real, done = dataset._write_person, []

    def dies(config, index, digest):
        if index == 2:
            for half in (config.source_root / "sub-0003" / ".9.half.nii.gz", config.work / "truth" / ".9.people.csv"):
                half.parent.mkdir(exist_ok=True)
                half.write_bytes(b"half a file")
            raise KeyboardInterrupt
        real(config, index, digest)
        done.append(index)

    monkeypatch.setattr(dataset, "_write_person", dies)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(config, progress=False)
    assert not (config.work / "truth" / ".record.json").exists()
    monkeypatch.setattr(dataset, "_write_person", lambda *job: (real(*job), done.append(job[1])))
    write_phantoms(config, progress=False)
    assert done == [0, 1, 2]
    monkeypatch.setattr(dataset, "_write_person", real)
    whole = write(tmp_path / "whole")
    assert digests(config.work) == digests(whole.work)

    before = times(config.work)
    write_phantoms(config, progress=False)
    assert times(config.work) == before
    lost = next((config.source_root / "sub-0002").rglob("*_T1w.nii.gz"))
    lost.unlink()  # is written again; others stay unchanged
    write_phantoms(config, progress=False)
    assert digests(config.work) == digests(whole.work)
    kept = times(config.source_root / "sub-0001", pattern="*.nii.gz")
    assert kept.items() <= before.items()


def test_other_settings_or_revisions_replace_our_own_files_only(tmp_path, monkeypatch):
    config = write(tmp_path, people=2)
    (config.source_root / "sub-notes").mkdir()
    with pytest.warns(UserWarning, match="made again"):
        write(tmp_path, people=2, scalp=True)
    fresh = write(tmp_path / "fresh", people=2, scalp=True)
    assert digests(config.source_root) == digests(fresh.source_root)
    assert (config.source_root / "sub-notes").is_dir()
    before = times(fresh.source_root, pattern="*.nii.gz")
    monkeypatch.setattr(dataset, "REVISION", dataset.REVISION + 1)
    with pytest.warns(UserWarning, match="another revision; they are removed and made again"):
        write_phantoms(fresh, progress=False)
    assert not before.items() & times(fresh.source_root).items()
    assert digests(config.source_root, "*.nii.gz") == digests(fresh.source_root, "*.nii.gz")


def test_files_are_those_of_their_revision(tmp_path):
    """A change of these numbers on purpose needs a higher `REVISION`, by which old files are known."""
    config = write(tmp_path, people=1)
    session = truth(config)[0]["sessions"][0]
    found = {what: nib.load(config.source_root / scan["path"]).get_fdata() for what, scan in session["scans"].items()}
    means = {what: image[image > 0].mean() for what, image in found.items()}
    latent = [session[key] for key in ("load", "stage", "severity")]
    assert dataset.REVISION == 2
    assert means == pytest.approx({"t1w": 567.2905, "amyloid": 1651.920, "tau": 1456.432}, rel=1e-3)
    assert latent == pytest.approx([0.00848505, 1.45070545, 0.40442992], rel=1e-6)


@pytest.mark.parametrize("stage", [find_sessions, preprocess])
def test_later_stages_read_phantoms_as_they_were_written(tmp_path, stage):
    """One byte of a scan, an age or a date edited, or a table lost, and the remedy."""
    config = write(tmp_path, people=1, t1_voxel_mm=(8.0,) * 3, pet_voxel_mm=(8.0,) * 3)
    before = digests(config.source_root)
    for name in ("*_T1w.nii.gz", "*_pet.nii.gz", "*_pet.json", "*_scans.tsv", "*_sessions.tsv", "participants.tsv"):
        path = next(config.source_root.rglob(name))
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
        with pytest.raises(RecordError, match=rf"{path.name}: changed since `resdm phantom test` wrote it"):
            stage(config)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=rf"{path.name}: no such file; run `resdm phantom test` first"):
            stage(config)
        write_phantoms(config, progress=False)
        assert digests(config.source_root) == before


@pytest.mark.parametrize("made_by", ["", ', "GeneratedBy": {"Name": "scanner"}', ', "GeneratedBy": ["scanner"]'])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, made_by):
    config = profile(tmp_path)
    scan = config.source_root / "sub-0001" / "anat" / "sub-0001_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"real")
    (config.source_root / "dataset_description.json").write_text(f'{{"Name": "Real people"{made_by}}}')
    with pytest.raises(PhantomError, match=r"bids: holds files that .* did not write"):
        write_phantoms(config, progress=False)
    assert scan.read_bytes() == b"real"


@pytest.mark.parametrize(("cohort", "message"), [
    (CohortConfig(), r"cohort\.phantom is missing"),
    (CohortConfig(phantom=PhantomConfig(people=1), tau_cutoff=9.0),
     r"tau_cutoff is 9\.0; the phantoms' meta-temporal SUVR runs from 1\.0"),
])  # fmt: skip
def test_a_cohort_that_cannot_be_made_is_refused(tmp_path, cohort, message):
    with pytest.raises(ConfigError, match=message):
        write_phantoms(dataclasses.replace(profile(tmp_path), cohort=cohort), progress=False)


@pytest.mark.parametrize(("setting", "value"), [
    ("people", "0"), ("anatomy_mm", "9"), ("single_pet", "1.5"), ("pet_fwhm_mm", "[8, 6]"),
    ("t1_voxel_mm", "[1, 1, -1]"), ("noise", "-1"), ("pet_frames", "0"), ("coupling", "1.1"),
])  # fmt: skip
def test_impossible_settings_are_named(tmp_path, setting, value):
    path = tmp_path / "bad.yaml"
    path.write_text(f"cohort:\n  kind: phantom\n  phantom:\n    {setting}: {value}\n")
    with pytest.raises(ConfigError, match=rf"bad\.yaml: cohort\.phantom\.{setting}"):
        load_config(str(path))


# ── BIDS ──────────────────────────────────────────────────────────────────────────────────────────


def test_tables_and_sidecars_of_the_dataset(cohort):
    """`test_reproduce` has it validated as BIDS."""
    root = cohort.source_root
    description = json.loads((root / "dataset_description.json").read_text())
    assert description["DatasetType"] == "raw"
    assert "License" in description
    assert "on purpose" in (root / "README").read_text()
    people = pd.read_csv(root / "participants.tsv", sep="\t")
    assert len(people) == 80
    assert set(people.sex) == {"F", "M"}
    assert set(people.diagnosis_sc) == {"CN", "MCI", "AD"}
    for person in people.participant_id:
        sessions = pd.read_csv(root / person / f"{person}_sessions.tsv", sep="\t")
        assert list(sessions.columns) == ["session_id", "examination_date", "age", "diagnosis", "MMSE"]
        assert sorted(sessions.session_id) == sorted(p.name for p in (root / person).glob("ses-*"))
        for session in sessions.session_id:
            scans = pd.read_csv(root / person / session / f"{person}_{session}_scans.tsv", sep="\t")
            on_disk = (root / person / session).rglob("*.nii.gz")
            assert sorted(scans.filename) == sorted(f"{p.parent.name}/{p.name}" for p in on_disk)

    tracers = {"18FAV45": "florbetapir", "18FFBB": "florbetaben", "18FAV1451": "flortaucipir"}
    labels = set()
    for path in root.rglob("*_pet.json"):
        sidecar, label = json.loads(path.read_text()), re.search(r"trc-(\w+?)_", path.name)[1]
        labels.add(label)
        assert tracers[label] in sidecar["TracerName"]
        assert sidecar["Units"] == "Bq/mL"
    assert labels == set(tracers)


def test_every_scan_has_its_own_oblique_grid(cohort):
    codes, gains = {"anat": set(), "pet": set()}, []
    settings = cohort.cohort.phantom
    voxels = {"anat": settings.t1_voxel_mm, "pet": settings.pet_voxel_mm}
    for path in cohort.source_root.rglob("*.nii.gz"):
        image = nib.load(path)
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
        np.testing.assert_allclose(image.header.get_zooms()[:3], voxels[path.parent.name], rtol=1e-5)
        directions = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
        tilt = np.rad2deg(np.arccos(np.abs(directions).max(axis=0)))
        assert 0.5 < tilt.max() < 12
        codes[path.parent.name].add("".join(nib.aff2axcodes(image.affine)))
        if path.parent.name == "pet":
            gains.append(image.get_fdata(dtype=np.float32).max())
    assert codes["anat"] == {"RAS", "LPS", "PSR"}
    assert codes["pet"] == {"RAS", "LAS", "LPS"}
    assert np.std(np.log(gains)) > 0.15  # no scan shares its scale with another


def test_pet_is_shifted_and_rotated_against_the_t1(cohort):
    for person in truth(cohort):
        for session in person["sessions"]:
            to_mni = {name: np.array(scan["world_to_mni"]) for name, scan in session["scans"].items()}
            middle = np.linalg.inv(to_mni["t1w"]) @ [0, -17, 5, 1]
            for tracer in person["tracers"]:
                move = np.array(session["scans"][tracer]["pet_to_t1"])
                np.testing.assert_allclose(to_mni["t1w"] @ move, to_mni[tracer], atol=1e-9)
                np.testing.assert_allclose(move[:3, :3] @ move[:3, :3].T, np.eye(3), atol=1e-9)
                angle = np.rad2deg(np.arccos((np.trace(move[:3, :3]) - 1) / 2))
                shift = np.linalg.norm(np.linalg.inv(move) @ middle - middle)
                assert 1.9 < angle < 8.1
                assert 1.9 < shift < 10.1


def test_the_field_of_view_holds_the_brain(cohort):
    brain = mni_map("brain", Grid((96, 112, 96), 2.0)).sum() * 8.0
    for person in truth(cohort)[:40]:
        expected = brain / np.linalg.det(np.array(person["person_to_mni"])[:3, :3])
        for session in person["sessions"]:
            t1 = nib.load(cohort.source_root / session["scans"]["t1w"]["path"])
            inside = np.asanyarray(t1.dataobj) > 0
            assert inside.sum() * abs(np.linalg.det(t1.affine)) == pytest.approx(expected, rel=0.06)
            for scan in session["scans"].values():
                data = nib.load(cohort.source_root / scan["path"]).get_fdata(dtype=np.float32)
                for axis in range(3):
                    border = np.take(data, [0, -1], axis=axis)
                    assert border.max() < 0.2 * data.max()


# ── anatomy ───────────────────────────────────────────────────────────────────────────────────────


def test_deformation_agrees_on_grid_and_points_without_affine_part():
    deformation = phantom_anatomy.draw_deformation(seed=3, index=5, ventricles=0.5)
    axes = tuple(np.linspace(-60, 60, n) for n in (7, 8, 9))
    field = phantom_anatomy.displacement_on_axes(deformation, axes)
    points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).T
    np.testing.assert_allclose(field.reshape(3, -1).T, displacement(deformation, points), atol=1e-4)

    grid = Grid((40, 48, 42), 4.0)
    inside = grid.mm()[:, mni_map("brain", grid)].T
    moved = displacement(deformation, inside)
    affine = np.linalg.lstsq(np.column_stack([inside, np.ones(len(inside))]), moved, rcond=None)[0]
    assert np.linalg.norm(np.column_stack([inside, np.ones(len(inside))]) @ affine, axis=1).mean() < 0.15
    assert 2 < np.sqrt((moved**2).sum(1).mean()) < 5


def test_the_deformation_never_folds():
    grid = Grid((40, 48, 42), 4.0)
    axes = tuple(grid.affine[i, 3] + 4.0 * np.arange(n) for i, n in enumerate(grid.shape))
    for index in range(20):
        field = phantom_anatomy.displacement_on_axes(phantom_anatomy.draw_deformation(0, index, 0.75), axes)
        slopes = np.stack([np.stack(np.gradient(component, 4.0)) for component in field])  # (3, 3, X, Y, Z)
        jacobian = np.eye(3) + np.moveaxis(slopes, (0, 1), (-2, -1))
        assert np.linalg.det(jacobian).min() > 0.01


def t1_in_mni(config: Config, session: dict) -> np.ndarray:
    image = sample(config, session["scans"]["t1w"], GRID.mm())
    return image / np.percentile(image[mni_map("brain", GRID)], 95)


def test_ventricles_grow_with_age_and_the_medial_temporal_lobe_shrinks_with_disease(cohort):
    people, x, y, z = baseline(cohort), *GRID.mm()
    box = (np.abs(x) < 35) & (y > -55) & (y < 35) & (z > -2) & (z < 32)  # the lateral ventricles and their surroundings
    darkness, medial = [], []
    for person in truth(cohort):
        image = t1_in_mni(cohort, person["sessions"][0])
        darkness.append(-image[box].mean())
        medial.append(image[regions(GRID)["medial_temporal"]].mean() - image[regions(GRID)["occipital"]].mean())
    assert np.corrcoef(people.ventricles, people.age)[0, 1] > 0.6
    assert np.corrcoef(darkness, people.ventricles)[0, 1] > 0.5
    assert np.corrcoef(darkness, people.age)[0, 1] > 0.35
    assert np.corrcoef(medial, people.severity)[0, 1] < -0.5


def test_left_stays_left(quiet):
    """Torque (T1) and left share of uptake (PET) identify the sides in every storage order."""
    poles = np.array([[28.0, 56, 0], [-28, 56, 0], [-24, -92, 4], [24, -92, 4]])  # right, left, left, right
    torque, ratios = [], {"amyloid": [], "tau": []}
    for person in truth(quiet):
        session = person["sessions"][0]
        shift = displacement(session["deformation"], poles)[:, 1]
        torque.append(shift[1] - shift[0] + shift[2] - shift[3])
        template = np.concatenate([region_points("frontal"), region_points("parietal")])
        left, points = template[:, 0] < 0, undo(session["deformation"], template)
        for tracer in person["tracers"]:
            values = sample(quiet, session["scans"][tracer], points.T)
            ratios[tracer].append(values[left].mean() / values[~left].mean() - 1)
    assert np.mean(torque) > 5
    assert np.mean(ratios["amyloid"]) == pytest.approx(0.045, abs=0.02)
    assert np.mean(ratios["tau"]) == pytest.approx(0.08, abs=0.025)


# ── uptake ────────────────────────────────────────────────────────────────────────────────────────


def test_images_hold_the_regional_suvr_of_the_truth(quiet):
    table = pd.read_csv(quiet.work / "truth" / "regional.csv").set_index(["person", "session", "tracer", "region"]).suvr
    names = ["precuneus", "frontal", "lateral_temporal", "medial_temporal", "striatum", "occipital"]
    errors = []
    for person in truth(quiet):
        for session in person["sessions"]:
            where = places(session, [*names, *REFERENCE.values()])
            for tracer in person["tracers"]:
                scan, reference = session["scans"][tracer], REFERENCE[tracer]
                found = measure(quiet, scan, where, reference)
                wanted = table.loc[person["person"], session["session"], tracer]
                errors += [found[name] / wanted[name] - 1 for name in names]
                assert wanted[reference] == pytest.approx(1, abs=1e-5)
                mean = sample(quiet, scan, where[reference].T).mean()
                assert mean / scan["gain"] == pytest.approx(1, abs=0.02)
    assert np.abs(errors).max() < 0.05
    assert abs(np.mean(errors)) < 0.01


def test_a_null_phantom_differs_by_the_planted_effects_alone(quiet, null):
    """Person by person, image by image: effect minus no effect is sex times its size plus age times its slope."""
    assert digests(quiet.source_root, "*_T1w.nii.gz") == digests(null.source_root, "*_T1w.nii.gz")
    planted = json.loads((quiet.work / "truth" / "truth.json").read_text())["planted"]
    zero = json.loads((null.work / "truth" / "truth.json").read_text())["planted"]
    names = ["frontal", "precuneus", "lateral_temporal", "striatum"]
    rows, design = {"amyloid": [], "tau": []}, {"amyloid": [], "tau": []}
    for person, without in zip(truth(quiet), truth(null), strict=True):
        session, other = person["sessions"][0], without["sessions"][0]
        assert session["scans"] == other["scans"]
        assert session["deformation"] == other["deformation"]
        where = places(session, [*names, *REFERENCE.values()])
        for tracer in person["tracers"]:
            scan = session["scans"][tracer]
            found, plain = (measure(config, scan, where, REFERENCE[tracer]) for config in (quiet, null))
            rows[tracer].append([found[name] - plain[name] for name in names])
            design[tracer].append([0.5 if person["sex"] == "F" else -0.5, (session["age"] - AGE_CENTRE) / 10])
    for tracer in rows:
        slopes, *_ = np.linalg.lstsq(np.array(design[tracer]), np.array(rows[tracer]), rcond=None)
        for column, name in enumerate(names):
            assert slopes[0, column] == pytest.approx(planted[tracer][name]["sex"], rel=0.15)
            assert slopes[1, column] == pytest.approx(planted[tracer][name]["age"], rel=0.15)
            assert zero[tracer][name]["sex"] == zero[tracer][name]["age"] == 0
        assert 0.10 < planted[tracer]["lateral_temporal"]["sex"] < 0.24


def test_noise_grows_with_the_counts(tmp_path):
    noisy, clean = (write(tmp_path / str(noise), people=1, noise=noise) for noise in (1.0, 0.0))
    for person in truth(noisy):
        for tracer in person["tracers"]:
            scan = person["sessions"][0]["scans"][tracer]
            paths = [config.source_root / scan["path"] for config in (noisy, clean)]
            with_noise, without = (nib.load(path).get_fdata() / scan["gain"] for path in paths)
            error = with_noise - without
            low, high = (without > 0.4) & (without < 0.7), without > 1.0
            ratio = error[high].std() / error[low].std()
            assert ratio == pytest.approx(np.sqrt(without[high].mean() / without[low].mean()), rel=0.12)
            assert 0.03 < error[high].std() < 0.10


def test_amyloid_and_tau_correlate_across_people_but_not_across_the_brain(cohort):
    people = baseline(cohort).dropna()
    assert 0.4 < people.amyloid_suvr.corr(people.tau_suvr) < 0.9
    planted = json.loads((cohort.work / "truth" / "truth.json").read_text())["planted"]
    cortical = [name for name in planted["tau"] if name not in ("cerebellum", "inferior_cerebellum", "pons")]
    status = {tracer: [planted[tracer][name]["status"] for name in cortical] for tracer in planted}
    assert np.corrcoef(status["amyloid"], status["tau"])[0, 1] < 0.6
    highest = max(cortical, key=lambda name: planted["amyloid"][name]["status"])
    assert highest in {"precuneus", "posterior_cingulate", "anterior_cingulate"}
    assert planted["tau"]["inferior_temporal"]["status"] > 4 * planted["tau"]["sensorimotor"]["status"]


# ── people ────────────────────────────────────────────────────────────────────────────────────────


@cache
def first_visits(coupling: float, people: int = 1500) -> pd.DataFrame:
    """Latent people, without images; ``growth``: of severity until a second visit."""
    config = profile(Path(), seed=1, people=people, coupling=coupling, repeat_visits=1.0)
    rows = []
    for person in (draw_person(config, index) for index in range(people)):
        first, second = person["visits"]
        growth = second["severity"] - first["severity"]
        rows.append(first | {"positive": person["positive"], "woman": person["sex"] == "F", "growth": growth})
    return pd.DataFrame(rows)


def test_coupling_scales_how_atrophy_predicts_pathology():
    visits = {coupling: first_visits(coupling) for coupling in (0.0, 0.5, 1.0)}
    fixed = ["load", "stage", "positive", "age", "woman", "diagnosis", "mmse"]
    for people in visits.values():  # only severity differs
        pd.testing.assert_frame_equal(people[fixed], visits[1.0][fixed])
    foretold = {c: people[["load", "stage", "positive"]].corrwith(people["severity"]) for c, people in visits.items()}
    noise = 3 / np.sqrt(len(visits[0.0]))
    assert (foretold[1.0] > [0.5, 0.7, 0.45]).all()
    assert (foretold[0.5] - foretold[1.0] / 2).abs().max() < noise  # a mixture of equal variance: covariance halves
    assert foretold[0.0].abs().max() < noise
    shown = visits[0.0][["severity", "ventricles", "growth"]]
    given = np.column_stack([visits[0.0][["age", "woman"]].astype(float), np.ones(len(shown))])
    rest = shown - given @ np.linalg.lstsq(given, shown, rcond=None)[0]  # nothing in the MRI, at fixed age and sex
    for cause in ("load", "stage", "positive"):
        assert rest.corrwith(visits[0.0][cause].astype(float)).abs().max() < noise
    assert visits[1.0]["growth"].corr(visits[1.0]["stage"]) > 0.25


def test_coupling_keeps_the_distribution_of_atrophy():
    whole = first_visits(1.0)
    for coupling in (0.0, 0.5):
        people = first_visits(coupling)
        for shown in ("severity", "ventricles"):
            assert stats.ks_2samp(people[shown], whole[shown]).pvalue > 0.01


def test_planted_status_follows_disease_alone(cohort):
    people = pd.read_csv(cohort.work / "truth" / "people.csv")
    cut = json.loads((cohort.work / "truth" / "truth.json").read_text())["stage_cut"]
    assert average_regions(cohort, "tau", stage=cut)[2] == pytest.approx(cohort.cohort.tau_cutoff, abs=1e-3)
    assert people["tau_positive"].tolist() == (people["stage"] > cut).astype(int).tolist()
    assert people.loc[people["tau_suvr"].isna(), "tau_positive"].notna().all()  # known without a PET
    assert people["amyloid_positive"].tolist() == (people["load"] > 0.4).astype(int).tolist()
    assert 0.2 < people["tau_positive"].mean() < 0.6
    # a cut through the SUVR would call more women than men positive: women have 0.14 more at the same disease
    cohort_cut = people.dropna(subset="tau_suvr").assign(label=lambda p: p["tau_suvr"] > cohort.cohort.tau_cutoff)
    excess = cohort_cut["label"] - cohort_cut["tau_positive"]
    assert excess[cohort_cut["sex"] == "F"].mean() > excess[cohort_cut["sex"] == "M"].mean() + 0.1


def test_people_are_like_table_1(tmp_path):
    config = profile(tmp_path, people=1500)
    people = pd.DataFrame([draw_person(config, index) for index in range(1500)])
    people = people.join(pd.DataFrame(people.visits.str[0].tolist()))
    for diagnosis, age, women, education, mmse in (
        ("AD", 74.58, 85 / 210, 15.66, 23.01), ("MCI", 71.66, 297 / 656, 16.19, 27.96),
        ("CN", 71.37, 357 / 608, 16.68, 29.09),
    ):  # fmt: skip
        group = people[people.diagnosis == diagnosis]
        assert group.age.mean() == pytest.approx(age, abs=1.2)
        assert (group.sex == "F").mean() == pytest.approx(women, abs=0.03)
        assert group.education.mean() == pytest.approx(education, abs=0.6)
        assert group.mmse.mean() == pytest.approx(mmse, abs=0.5)
    assert people.diagnosis.value_counts(normalize=True)["AD"] == pytest.approx(210 / 1474, abs=0.01)
    assert (people.tracers.str.len() == 1).mean() == pytest.approx(0.10, abs=0.01)
    assert (people.visits.str.len() == 2).mean() == pytest.approx(0.12, abs=0.01)
    assert (people.amyloid_tracer == "18FFBB").mean() == pytest.approx(0.25, abs=0.02)
    status = people.groupby("diagnosis").positive.mean()
    assert status["CN"] < 0.35 < status["MCI"] < 0.65 < status["AD"]
    # neither age nor sex predicts the load within a diagnosis: their effects are planted apart
    for _, group in people.groupby("diagnosis"):
        limit = 3 / np.sqrt(len(group))
        assert abs(np.corrcoef(group.age, group.load)[0, 1]) < limit
        assert abs(np.corrcoef(group.sex == "F", group.load)[0, 1]) < limit


def test_suvr_is_near_table_1(cohort):
    means = baseline(cohort).groupby("diagnosis")[["amyloid_suvr", "tau_suvr"]].mean()
    for diagnosis, amyloid, tau in (("AD", 1.40, 1.60), ("MCI", 1.22, 1.33), ("CN", 1.12, 1.18)):
        assert means.loc[diagnosis, "amyloid_suvr"] == pytest.approx(amyloid, abs=0.15)
        assert means.loc[diagnosis, "tau_suvr"] == pytest.approx(tau, abs=0.22)


def test_second_visits_follow_the_first(cohort):
    repeats = [person["sessions"] for person in truth(cohort) if len(person["sessions"]) == 2]
    assert 7 <= len(repeats) <= 12
    for first, second in repeats:
        assert second["session"] in ("ses-M012", "ses-M024")
        assert second["age"] - first["age"] == pytest.approx(int(second["session"][-3:]) / 12, abs=0.25)
        assert second["load"] >= first["load"]
        for name in first["scans"]:
            assert first["scans"][name]["world_to_mni"] != second["scans"][name]["world_to_mni"]


def test_truth_stays_outside_the_dataset(cohort):
    text = "".join(p.read_text() for p in cohort.source_root.rglob("*") if p.suffix in (".json", ".tsv"))
    for word in ("world_to", "severity", "deformation", "positive"):
        assert word not in text
    people = pd.read_csv(cohort.work / "truth" / "people.csv")
    assert len(people) == sum(len(person["sessions"]) for person in truth(cohort))


# ── options ───────────────────────────────────────────────────────────────────────────────────────


def test_frames_average_to_the_scan(tmp_path):
    config = write(tmp_path, people=1, pet_frames=4)
    for path in config.source_root.rglob("*_pet.nii.gz"):
        data, sidecar = nib.load(path).get_fdata(), json.loads(sidecar_path(path).read_text())
        assert data.shape[3] == 4
        assert len(sidecar["FrameDuration"]) == len(sidecar["FrameTimesStart"]) == 4
        bright = data.mean(3) > 0.5 * data.max()
        single = (data[..., 0] - data[..., 1])[bright].std()
        assert (data[..., :2].mean(3) - data[..., 2:].mean(3))[bright].std() == pytest.approx(single / 2**0.5, rel=0.1)


def test_scalp_surrounds_the_brain(tmp_path):
    bare, whole = write(tmp_path / "bare", people=1), write(tmp_path / "whole", people=1, scalp=True)
    template = phantom_anatomy.make_template(4.0)
    mm, shell = template.grid.mm(), template.air_mm
    skull, skin = (mm[:, (shell > low) & (shell < high)] for low, high in ((4.5, 6), (10, 12)))
    session = truth(whole)[0]["sessions"][0]
    (_, nothing), (dark, bright) = (
        [sample(config, session["scans"]["t1w"], undo(session["deformation"], points.T).T).mean()
         for points in (skull, skin)] for config in (bare, whole)
    )  # fmt: skip
    assert bright > 1.5 * dark > 0
    assert nothing == pytest.approx(0, abs=1)


@pytest.mark.parametrize(("anatomy", "voxel"), [(2.0, (2.0, 2.0, 2.4)), (3.0, (3.0, 3.0, 3.0))])
def test_every_resolution_has_the_same_anatomy(tmp_path, anatomy, voxel):
    config = write(tmp_path, people=1, anatomy_mm=anatomy, t1_voxel_mm=voxel, pet_voxel_mm=voxel, noise=0.0)
    person = truth(config)[0]
    session = person["sessions"][0]
    names = ["frontal", "precuneus", "lateral_temporal"]
    limits = {"amyloid": (0.9, 1.6), "tau": (0.8, 1.6)}
    where = places(session, [*names, *REFERENCE.values()])
    for tracer in person["tracers"]:
        found = measure(config, session["scans"][tracer], where, REFERENCE[tracer])
        for name in names:
            assert limits[tracer][0] < found[name] < limits[tracer][1]
    gm, wm = mni_map("gm", GRID), mni_map("wm", GRID)
    image = t1_in_mni(config, session)
    assert image[wm > 0.8].mean() > 1.2 * image[gm > 0.8].mean()
