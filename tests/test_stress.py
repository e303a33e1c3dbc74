"""Planted shifts do what their names say; a method without an MRI does not notice those of the T1."""

import numpy as np
import pandas as pd
import pytest
from notebook_cells import run_cells
from stored_cohort import GRID, make_config, save, write_volumes

from resdm.baselines.linear import DemographicsConfig
from resdm.io import write_csv, write_json
from resdm_suite.anatomy import mni_map
from resdm_suite.apps import stress
from resdm_suite.apps.synthesis import synthesise_method
from resdm_suite.apps.training import train_method
from resdm_suite.evaluation.image_quality import score_people
from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing.dataset import CohortDataset

BRAIN = mni_map("brain", GRID)
T1 = (mni_map("t1", GRID) * BRAIN * np.linspace(0.8, 1, 16)[:, None, None]).astype(np.float32)  # MNI152 is symmetric


def changed(name, strength, seed=0):
    return stress._changed(stress.SHIFTS[name], T1, strength, GRID, np.random.default_rng(seed))


@pytest.mark.parametrize("name", [name for name, shift in stress.SHIFTS.items() if shift.scan == "t1w"])
def test_a_shift_grows_with_its_strength(name):
    sizes = [float(np.abs(changed(name, strength) - T1).mean()) for strength in stress.SHIFTS[name].strengths]
    order = sizes if name != "contrast" else sizes[1:]  # of exponents below and above 1
    assert order == sorted(order)
    assert min(sizes) > 0
    assert all(changed(name, strength).max() <= 1 for strength in stress.SHIFTS[name].strengths)


def test_shifts_in_closed_form():
    np.testing.assert_array_equal(changed("left and right exchanged", 1), T1[::-1])
    np.testing.assert_allclose(changed("contrast", 2.0), T1**2, rtol=1e-6)
    half = T1.shape[1] // 2
    np.testing.assert_allclose(changed("motion ghosts", 0.2), 0.8 * T1 + 0.2 * np.roll(T1, half, 1), rtol=1e-5)
    assert (changed("skull left in", 0.5)[BRAIN] == T1[BRAIN]).all()
    assert set(np.unique(changed("skull left in", 0.5)[~BRAIN])) == {0.0, 0.5}
    lowest = GRID.mm()[2][BRAIN].min()
    assert not changed("cropped field", 36)[GRID.mm()[2] < lowest + 36].any()
    noise = changed("noise", 0.06) - T1
    assert noise[T1 > 0.4].std() == pytest.approx(0.06, rel=0.15), "Rician noise is Gaussian where the signal is strong"
    pet = np.full(GRID.shape, 0.4)
    scaled = stress._changed(stress.SHIFTS["another tau tracer"], pet, 1.3, GRID, np.random.default_rng(0))
    np.testing.assert_allclose(scaled, 0.52, rtol=1e-6)


def write_cohort(config, splits, **columns):
    """Volumes with a T1 and its registration for everyone."""
    write_volumes(config, splits, without_tau=[9])
    index = pd.read_csv(config.volumes / "index.csv")
    index["t1w"] = [f"{person}/t1.nii.gz" for person in index["person"]]
    for path in index["t1w"]:
        save(config.volumes / path, T1)
        write_json(sidecar_path(config.volumes / path), {"transform": np.eye(4).tolist()})
    write_csv(config.volumes / "index.csv", index.assign(t1_correlation=0.9, **columns))


def test_scores_of_every_shift(tmp_path):
    config = make_config(tmp_path, methods={"demographics": DemographicsConfig(fields=("age", "sex", "dose"))})
    known = {"dose": [1.0, 2.0, 3.5, 1.5, 4.0, 3.0, 2.5, 1.2, 2.2, 3.3, 1.8], "amyloid_status": 1, "tau_status": 0}
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 3
    write_cohort(config, splits, **known, amyloid_suvr=np.nan, tau_suvr=np.nan)
    train_method(config, "demographics", progress=False)
    synthesise_method(config, "demographics", progress=False)
    frame = stress.stress(config, ["demographics"], progress=False)
    keys = ["person", "session", "tracer"]
    unshifted = frame[frame["shift"] == ""].set_index(keys)["psnr"]
    own = score_people(config, "demographics").query("region == 'brain'").set_index(keys)["psnr"]
    pd.testing.assert_series_equal(unshifted.sort_index(), own.sort_index(), rtol=1e-6)
    assert len(unshifted) == 5, "one person has no tau PET"
    shifts = frame.set_index(keys).groupby("shift")["psnr"]
    changes = shifts.apply(lambda psnr: (psnr - unshifted[psnr.index]).abs().max())
    of_pet = {name for name, shift in stress.SHIFTS.items() if shift.scan != "t1w"}
    assert {*changes.index[changes > 1e-6]} == of_pet
    assert {*frame.loc[frame["shift"] == "another tau tracer", "tracer"]} == {"tau"}
    assert frame["refused"].isna().all(), "too few people for an input check"
    assert stress.planted_faults(config, None).empty
    # notebook 18, on a profile without the model of age and sex
    curves = frame.groupby(["shift", "strength", "method"], sort=False)[["psnr", "refused"]].mean().reset_index()
    run_cells("18", config, "18-02", "18-08", curves=curves.replace("demographics", "ResDM"), methods=["ResDM"])


def test_planted_faults_are_scored_against_sound_scans(tmp_path):
    """With a check of one measure, the deviation from the mean brightness."""
    config = make_config(tmp_path)
    write_cohort(config, ["train"] * 2 + ["test"] * 3)
    sound = [CohortDataset(config, "test").mri(i)[BRAIN].mean() for i in range(3)]

    class Check:
        threshold = 0.01

        def measure(self, mri, matrix, correlation):
            return {"brightness": mri[BRAIN].mean()}

        def scores(self, measured):
            return {"brightness": min(abs(measured["brightness"] - one) for one in sound)}

    frame = stress.planted_faults(config, Check())
    assert len(frame) == 3 * (1 + sum(shift.scan == "t1w" for shift in stress.SHIFTS.values()))
    refused = frame.groupby("fault")["refused"].mean()
    assert refused["none"] == refused["left and right exchanged"] == 0
    assert refused["contrast"] == 1
