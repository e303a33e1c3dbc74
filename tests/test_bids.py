"""A BIDS data set gives the manifest: sessions, ages, tracers, spaces, notes and reasons."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import changed, flow

from resdm.baselines.linear import LinearConfig
from resdm_suite.cohorts.assembly import make_manifest
from resdm_suite.cohorts.manifest import LeakageError, ManifestError
from resdm_suite.cohorts.readers.bids import build_manifest
from resdm_suite.profiles import CohortConfig, Config


@pytest.fixture
def config(tmp_path):
    return Config(profile="tiny", cohort=CohortConfig(kind="other"), root=tmp_path)


@pytest.fixture
def dataset(tmp_path):
    """``dataset(participants, {"sub-1/ses-1": [T1, …]}, sessions)`` writes scans; ``{T1: "2011-03-01"}`` dates them."""

    def make(participants, scans, sessions=None):
        root = tmp_path / "bids"
        for place, files in scans.items():
            stem = place.replace("/", "_")
            for file in files:
                folder, _, name = file.rpartition("/")
                path = root / place / folder / f"{stem}_{name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            (root / place).mkdir(parents=True, exist_ok=True)
            if isinstance(files, dict):  # "" for no date
                rows = [f"{file.replace('/', f'/{stem}_', 1)}\t{date or 'n/a'}\n" for file, date in files.items()]
                (root / place / f"{stem}_scans.tsv").write_text("filename\tacq_time\n" + "".join(rows))
        if participants is not None:
            root.mkdir(exist_ok=True)
            (root / "participants.tsv").write_text(participants)
        for person, table in (sessions or {}).items():
            (root / person / f"{person}_sessions.tsv").write_text(table)
        return root

    return make


@pytest.fixture
def read(dataset, config):
    """The cohort of what `dataset` writes."""
    return lambda *arguments: build_manifest(dataset(*arguments), config)


T1 = "anat/T1w.nii.gz"
AV45, FBB, TAU = (f"pet/trc-{label}_pet.nii.gz" for label in ("18FAV45", "18FFBB", "18FAV1451"))
ONE = "participant_id\tsex\tage\nsub-1\tF\t70\n"


def test_the_flow_lists_who_is_left_out(read):
    frame, steps, *_ = read(
        "participant_id\tsex\tage\nsub-1\tm\t70\nsub-2\tFemale\t71\nsub-3\tF\tn/a\nsub-4\tF\t72\nsub-5\tM\t73\nsub-6\tn/a\t60\n",
        {
            "sub-1/ses-1": [T1, AV45, TAU], "sub-1/ses-2": [T1], "sub-2/ses-1": [T1, TAU],
            "sub-3/ses-1": [T1, AV45], "sub-4/ses-1": [AV45], "sub-5/ses-1": [T1, "pet/trc-11CPIB_pet.nii.gz"],
            "sub-6/ses-1": [T1, AV45],
        },
    )  # fmt: skip
    assert flow(steps) == {
        "found": (6, 7), "has T1": (5, 6), "has amyloid": (3, 3), "has tau": (2, 2),
        "has amyloid and tau": (1, 1), "has amyloid or tau": (4, 4), "in window": (4, 4),
        "amyloid and tau in window": (1, 1), "has age and sex": (2, 2), "kept": (2, 2),
    }  # fmt: skip
    kept = frame[["person", "session", "sex", "age"]].to_numpy().tolist()
    assert kept == [["sub-1", "ses-1", "M", 70.0], ["sub-2", "ses-1", "F", 71.0]]


def test_sessions_tsv_precedes_participants_tsv_and_later_ages_follow(read):
    frame, flow, *_ = read(
        "participant_id\tgender\tage_bl\tdiagnosis_sc\tmmse_bl\teducation_level\n"
        "sub-1\tfemale\t70.0\tEMCI\t27\t12\nsub-2\tMALE\t64.5\tDementia\t22\t16\n",
        {
            "sub-1/ses-M000": [T1, AV45], "sub-1/ses-M018": [T1, AV45], "sub-2/ses-M000": [T1, AV45],
            "sub-2/ses-M030": [T1, TAU], "sub-2/ses-later": [T1, TAU],
        },
        {"sub-1": "session_id\tage\tdiagnosis\tMMSE\nM000\t70.2\tMCI\t28\nses-M018\t71.8\tAD\tn/a\n"},
    )  # fmt: skip
    assert frame[["session", "age", "sex", "diagnosis", "education"]].to_numpy().tolist() == [
        ["ses-M000", 70.2, "F", "MCI", 12.0],
        ["ses-M018", 71.8, "F", "AD", 12.0],
        ["ses-M000", 64.5, "M", "AD", 16.0],
        # age by the months in the label; other baseline values are not used
        ["ses-M030", 67.0, "M", "", 16.0],
    ]
    assert frame["mmse"].fillna(-1).tolist() == [28, -1, 22, -1]
    assert flow.set_index("step")["sessions"]["has age and sex"] == 4  # ses-later has no age


def test_a_column_for_the_prompt_may_have_any_name(dataset, config):
    methods = {"Mine": LinearConfig(kind="linear", fields=("age", "years", "cells", "visit_day"))}
    root = dataset("participant_id\tsex\tage\tyears\tcells\tvisit_day\nsub-1\tF\t70\t12\tmany\t5\n",
                   {"sub-1/ses-M012": [T1, AV45]})  # fmt: skip
    frame = build_manifest(root, changed(config, methods=methods)).manifest
    assert frame[["years", "cells", "visit_day"]].to_numpy().tolist() == [["12", "many", "5"]]


def test_choices_are_noted_and_the_file_name_precedes_the_sidecar(dataset, config, caplog):
    files = [T1, "anat/acq-b_T1w.nii.gz", AV45, FBB, TAU, "pet/trc-18FAV1451_run-2_pet.nii.gz"]
    root = dataset(ONE, {"sub-1/ses-1": files})
    odd = {"TracerName": "AV-1451 flortaucipir", "Radiopharmaceutical": "[18F]Florbetaben"}  # as DLBS has it
    for tracer, sidecar in (("18FAV1451", odd), ("18FAV1451_run-2", odd), ("18FAV45", {"TracerName": "AV45"})):
        (root / f"sub-1/ses-1/pet/sub-1_ses-1_trc-{tracer}_pet.json").write_text(json.dumps(sidecar))
    frame, _, _, notes = build_manifest(root, config)
    row = frame.iloc[0]
    assert (row["amyloid_tracer"], row["tau_tracer"]) == ("18FAV45", "18FAV1451")
    notes = "\n".join(notes)
    assert "2 T1w; sub-1_ses-1_T1w.nii.gz is used" in notes
    assert "18FAV45 and 18FFBB; 18FAV45 is used" in notes
    assert "has Radiopharmaceutical '[18F]Florbetaben'; the file name's tracer 18FAV1451 is used" in notes
    assert "TracerName" not in notes
    assert "18FAV45_pet.json" not in notes
    assert "the file name's tracer 18FAV1451" in caplog.text


def test_tracers_are_an_option(dataset, config):
    root = dataset(ONE, {"sub-1/ses-1": [T1, "pet/trc-11CPIB_pet.nii.gz", AV45]})
    pib = changed(config, cohort={"tracers": {"11CPIB": "amyloid", "18FAV45": "amyloid"}})
    frame, *_ = build_manifest(root, pib)
    assert frame["amyloid_tracer"].tolist() == ["11CPIB"]


@pytest.mark.parametrize(("participants", "scans", "message"), [
    (ONE.replace("\tF\t", "\tx\t"), [T1, TAU], "sub-1 ses-1: sex: found 'x', expected F, M"),
    ("person\tsex\n1\tF\n", [T1, TAU], "participants.tsv: no column participant_id"),
    ("", [T1, TAU], "participants.tsv: empty; expected a header"),
    (ONE, None, "no sub-* folder"), (None, None, "bids: no such folder; expected a BIDS dataset"),
    (ONE, [], "no session can be used: of 1 found, 0 have a T1w"),
    (ONE, [T1], "no session can be used: of 1 found, 1 have a T1w, 0 amyloid or tau PET too"),
    (None, [T1, TAU], "1 amyloid or tau PET too (trc- 18FAV45, 18FFBB, 18FAV1451), 1 in the window of 365 days, 0 als"),
])  # fmt: skip
def test_unreadable_values_are_named(read, participants, scans, message):
    with pytest.raises(ManifestError, match=re.escape(message)):
        read(participants, {} if scans is None else {"sub-1/ses-1": scans})


MNI = "space-MNI152NLin2009cSym"


@pytest.mark.parametrize(("files", "space", "tracers"), [
    ([f"anat/{MNI}_T1w.nii.gz", f"pet/trc-18FAV45_{MNI}_pet.nii.gz"], MNI[6:], ["18FAV45", ""]),
    ([T1, f"anat/{MNI}_T1w.nii.gz", AV45, f"pet/trc-18FAV45_{MNI}_pet.nii.gz"], "", ["18FAV45", ""]),
    ([T1, "pet/trc-18FAV45_space-T1w_pet.nii.gz"], "", ["18FAV45", ""]),
    ([T1, AV45, f"pet/trc-18FAV1451_{MNI}_pet.nii.gz"], "", ["18FAV45", ""]),
    ([T1, AV45, "pet/trc-18FAV1451_space-fsaverage_pet.nii.gz"], "", ["18FAV45", ""]),
])  # fmt: skip
def test_scans_of_a_session_come_from_one_space(read, files, space, tracers):
    frame, _, _, notes = read(ONE, {"sub-1/ses-1": files})
    assert frame[["space", "amyloid_tracer", "tau_tracer"]].to_numpy().tolist() == [[space, *tracers]]
    assert all(("MNI" in cell) == bool(space) for cell in (frame["t1w"][0], frame["amyloid"][0]))
    assert len(notes) == (1 if any("1451" in file for file in files) else 0)


def test_days_come_from_the_dates_of_scans(read):
    dates = {T1: "2011-03-01T23:10:00", AV45: "2011-02-26T08:00:00", TAU: "2012-12-01T08:00:00"}
    frame, flow, *_ = read(ONE, {"sub-1/ses-1": dates})
    assert frame["amyloid_days"].tolist() == [-3.0]
    assert frame["tau"].tolist() == [""]  # 641 days
    assert flow.set_index("step")["sessions"]["has tau"] == 1
    sessions = {"sub-1": "session_id\tacq_time\nses-1\tlater\n"}
    frame, _, _, notes = read(ONE, {"sub-1/ses-1": dates | {TAU: "soon"}}, sessions)
    assert frame["tau_days"].isna().all()
    assert "has no date for pet/sub-1_ses-1_trc-18FAV1451_pet.nii.gz: 'soon'" in notes[0]
    assert "no date in sub-1_sessions.tsv: 'later'" in notes[1]


def test_names_that_begin_with_a_dot_are_passed_over(dataset, config):
    root = dataset(ONE + "._sub-1\tM\t20\n", {"sub-1/ses-1": [T1, AV45]}, {"sub-1": "session_id\tage\nses-1\t71\n"})
    table = "filename\tacq_time\nanat/._sub-1_ses-1_T1w.nii.gz\tnever\nanat/.DS_Store\t\n"
    (root / "sub-1/ses-1/sub-1_ses-1_scans.tsv").write_text(table)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name("._" + path.name).write_bytes(b"\x00\x05\x16\x07\xb0")
    (root / "sub-1/ses-1/anat/.sub-1_ses-1_acq-a_T1w.nii.gz").touch()
    (root / "sub-1/.ses-0/anat").mkdir(parents=True)
    frame, _, _, notes = build_manifest(root, config)
    assert (Path(frame["t1w"][0]).name, frame["age"].tolist(), notes) == ("sub-1_ses-1_T1w.nii.gz", [71.0], [])


def test_links_to_nothing_are_named(dataset, config):
    root = dataset(ONE, {"sub-1/ses-1": [T1, AV45]}, {"sub-1": "session_id\tage\nses-1\t71\n"})
    scan = root / "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz"
    scan.unlink()
    scan.symlink_to("../../../.git/annex/objects/y")
    with pytest.raises(ManifestError, match=rf"1 of 2 scans are missing .*{scan}; .* `datalad get` what git-annex hol"):
        make_manifest(config, root, "bids")
    for path in (root / "sub-1" / "sub-1_sessions.tsv", root / "participants.tsv"):
        path.unlink()
        path.symlink_to(".git/annex/objects/x")
        with pytest.raises(ManifestError, match=rf"{path}: a link to a file .* `datalad get {path.name}`"):
            build_manifest(root, config)


def test_tables_of_another_folder_are_refused_for_a_raw_dataset(dataset, config):
    with pytest.raises(ManifestError, match=r"no outputs of fMRIPrep or PETPrep: .* leave out cohort\.tables"):
        build_manifest(dataset(ONE, {"sub-1/ses-1": [T1, AV45]}), changed(config, cohort={"tables": "elsewhere"}))


def test_lone_quotes_in_two_rows_join_no_people(read):
    words = ("x", '"mild', "x", '"mild', "x")
    rows = "".join(f"sub-{i}\t{word}\t{60 + i}\tF\n" for i, word in enumerate(words, 1))
    cohort = read("participant_id\tnote\tage\tsex\n" + rows, {f"sub-{i}/ses-1": [T1, AV45] for i in range(1, 6)})
    assert cohort.manifest["age"].tolist() == [61, 62, 63, 64, 65]


def test_contrast_agent_and_early_frames_come_last(read):
    """Of people without folders of sessions."""
    early, late = (f"pet/trc-18FAV45_acq-{phase}_pet.nii.gz" for phase in ("early", "late"))
    files = {1: ["anat/ce-gad_T1w.nii.gz", "anat/run-1_T1w.nii.gz", early, late], 2: ["anat/ce-gad_T1w.nii.gz", early]}
    frame, _, _, notes = read(ONE + "sub-2\tM\t71\n", {f"sub-{i}": names for i, names in files.items()})
    assert [Path(cell).name for cell in frame[["t1w", "amyloid"]].to_numpy().flat] == [
        "sub-1_run-1_T1w.nii.gz", "sub-1_trc-18FAV45_acq-late_pet.nii.gz",
        "sub-2_ce-gad_T1w.nii.gz", "sub-2_trc-18FAV45_acq-early_pet.nii.gz",
    ]  # fmt: skip
    only = [note for note in notes if "though it is after contrast agent or of the early phase" in note]
    words = ("ce-gad_T1w.nii.gz is the only T1w", "trc-18FAV45_acq-early_pet.nii.gz is the only 18FAV45")
    assert sorted(note.split(",")[0] for note in only) == [f"sub-2 ses-1: sub-2_{text}" for text in words]


def test_sessions_that_differ_in_sex_are_left_out(read):
    scans = {f"sub-{i}/ses-{n}": [T1, AV45] for i in (1, 2) for n in (1, 2)}
    tables = {"sub-2": "session_id\tsex\nses-1\tF\nses-2\tM\n"}
    frame, _, left_out, _ = read(ONE + "sub-2\tM\t71\n", scans, tables)
    assert set(frame["person"]) == {"sub-1"}
    assert left_out["reason"].tolist() == ["sex: differs between the sessions of the person"] * 2


def test_links_that_lead_out_of_the_dataset_are_noted(dataset, config, tmp_path):
    root = dataset(ONE + "sub-2\tM\t71\n", {f"sub-{i}/ses-1": [T1, AV45] for i in (1, 2)})
    pets = [root / f"sub-{i}/ses-1/pet/sub-{i}_ses-1_trc-18FAV45_pet.nii.gz" for i in (1, 2)]
    (tmp_path / "private.nii.gz").touch()
    (root / ".git").mkdir()
    (root / ".git" / "annexed").touch()
    for pet, target in zip(pets, (tmp_path / "private.nii.gz", root / ".git" / "annexed"), strict=True):
        pet.unlink()
        pet.symlink_to(target)
    assert build_manifest(root, config).notes == [f"1 scans are links to files outside {root} ({pets[0]} …)"]
    pets[1].unlink()
    pets[1].symlink_to(tmp_path / "private.nii.gz")
    with pytest.raises(LeakageError, match=r"1 scan is shared by two people: .* of sub-1 ses-1 and .* of sub-2 ses-1"):
        build_manifest(root, config)


# ── the tracer ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "label"), [
    ("[18F]Florbetapir", "18FAV45"), ("F18-AV-45", "18FAV45"), ("FBB", "18FFBB"), ("Neuraceq", "18FFBB"),
    ("AV-1451 (T807)", "18FAV1451"), ("FTP", "18FAV1451"), ("11C-PiB", ""), ("FDG", ""), ("AV45 or AV1451", ""),
    ("", ""),
])  # fmt: skip
def test_without_trc_the_sidecar_names_the_tracer(dataset, config, name, label):
    root = dataset(ONE, {"sub-1/ses-1": [T1, AV45, "pet/trc-18FFBB_pet.nii.gz"], "sub-1/ses-2": [T1, "pet/pet.nii.gz"]})
    (root / "sub-1/ses-2/pet/sub-1_ses-2_pet.json").write_text(json.dumps({"TracerName": name} if name else {}))
    frame, _, _, notes = build_manifest(root, config)
    second = frame[frame["session"] == "ses-2"]
    assert {*second[["amyloid_tracer", "tau_tracer"]].to_numpy().flat} - {""} == {label} - {""}
    if label:
        assert f"sub-1 ses-2: sub-1_ses-2_pet.nii.gz has no trc-; its sidecar's TracerName is {label}" in notes
    else:
        unread = "11CPIB" if "PiB" in name else "no known tracer, by trc- or TracerName"
        assert f"1 PET of {unread}: not read" in notes


@pytest.mark.parametrize("place", ["pet.json", "sub-1/sub-1_pet.json", "sub-1/ses-1/sub-1_ses-1_pet.json"])
def test_a_sidecar_may_stand_in_a_folder_above(dataset, config, place):
    root = dataset(ONE, {"sub-1/ses-1": [T1, "pet/run-1_pet.nii.gz"]})
    (root / "pet.json").write_text('{"TracerName": "FDG"}')
    (root / place).write_text('{"TracerName": "Amyvid"}')
    (root / "sub-1_ses-2_pet.json").write_text('{"TracerName": "FBB"}')  # of other scans
    assert build_manifest(root, config).manifest["amyloid_tracer"].tolist() == ["18FAV45"]


def test_other_spellings_of_trc_and_scans_that_are_never_taken(dataset, config):
    files = [T1, "pet/trc-AV1451_pet.nii.gz", "pet/trc-18FAV45_rec-nacstat_pet.nii.gz", "pet/trc-18FFDG_pet.nii.gz"]
    root = dataset(ONE, {"sub-1/ses-1": files, "sub-1/ses-2": [T1]})
    for name in ("sub-2_ses-1", "sub-1_ses-2"):  # copied into the wrong folder
        (root / f"sub-1/ses-1/pet/{name}_trc-18FFBB_pet.nii.gz").touch()
    frame, _, _, notes = build_manifest(root, config)
    assert frame[["amyloid", "tau_tracer"]].to_numpy().tolist() == [["", "18FAV1451"]]
    assert [note.removeprefix("sub-1 ses-1: ") for note in notes[:4]] == [
        "sub-1_ses-1_trc-18FAV45_rec-nacstat_pet.nii.gz has no attenuation correction; not used",
        "sub-1_ses-1_trc-AV1451_pet.nii.gz: trc-AV1451 is read as 18FAV1451",
        "sub-1_ses-2_trc-18FFBB_pet.nii.gz is named for sub-1_ses-2; not used",
        "sub-2_ses-1_trc-18FFBB_pet.nii.gz is named for sub-2_ses-1; not used",
    ]
    assert "1 PET of 18FFDG: not read" in notes


# ── ages ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("text", "age"), [
    ("89+", 89), (">89", 89), (">= 90", 90), ("072Y", 72), ("72.5 years", 72.5), ("18-38", None), ("XX", None),
    ("<18", None), ("12", None), ("n/a", None), ("840", None), ("71,5", None), ("inf", None),
    ("1e2", 100), ("7_0", None), ("1e999", None), ("-1", None), ('"', None), ("\u2028", None), ("14:05", None),
])  # fmt: skip
def test_one_age_leaves_out_one_person_at_most(read, text, age):
    scans = {f"sub-{i}/ses-1": [T1, TAU] for i in (1, 2)}
    frame, _, left_out, notes = read(ONE + f"sub-2\tM\t{text}\n", scans)
    assert frame["age"].tolist() == [70] + [age] * (age is not None)
    assert notes == ([] if text == "1e2" or age is None else [f"sub-2 ses-1: age {text!r} is read as {age:g}"])
    reason = "no age, or no sex" if text in ("n/a", "\u2028") else f"age: found {text!r}, expected a number from 18"
    assert [one[: len(reason)] for one in left_out["reason"]] == ([reason] if age is None else [])


@pytest.mark.parametrize(("column", "text", "fault"), [
    ("sex", "O", None), ("sex", "<b>F</b>", None), ("diagnosis", "Parkinson's", "CN, MCI, AD or nothing"),
    ("diagnosis", "<script>alert(1)</script>", "CN, MCI, AD or nothing"), ("mmse", "31", "a number from 0 to 30"),
    ("mmse", "28/30", "a number from 0 to 30"), ("education", "college", "a number from 0 to 40"),
    ("sex", "../../x", None), ("mmse", "1e999", "a number from 0 to 30"), ("diagnosis", '"', "CN, MCI, AD or nothing"),
])  # fmt: skip
def test_one_cell_of_any_column_stops_nobody_else(read, column, text, fault):
    cells = {"sex": "M", "age": "71", "diagnosis": "CN", "mmse": "29", "education": "12"}
    line = "\t".join((cells | {column: text}).values())
    table = f"participant_id\tsex\tage\tdiagnosis\tmmse\teducation\nsub-1\tF\t70\tCN\t30\t11\nsub-2\t{line}\n"
    frame, _, left_out, notes = read(table, {f"sub-{i}/ses-1": [T1, TAU] for i in (1, 2)})
    if fault is None:
        assert left_out.to_numpy().tolist() == [["sub-2", "ses-1", f"sex: found {text!r}, expected F, M"]]
    else:
        assert notes == [f"sub-2 ses-1: {column}: found {text!r}, expected {fault}; left empty"]
        assert pd.isna(frame[column][1]) or frame[column][1] == ""


@pytest.mark.parametrize(
    "place", ["sub-a_b/ses-1", "sub-1/ses-2012-05", "sub-<b>x/ses-1", "sub-.. /ses-1", "sub-/ses-1"]
)
def test_labels_that_are_none_leave_out_their_session(read, place):
    frame, _, left_out, _ = read(ONE, {"sub-1/ses-1": [T1, TAU], place: [T1, TAU]})
    assert frame[["person", "session"]].to_numpy().tolist() == [["sub-1", "ses-1"]]
    assert " and then letters and digits, as in BIDS" in left_out["reason"][0]


def test_a_second_column_of_one_name_is_noted_and_not_used(read):
    cohort = read("participant_id\tsex\tage\tAge\nsub-1\tF\t70\t30\n", {"sub-1/ses-1": [T1, AV45]})
    assert cohort.manifest["age"].tolist() == [70.0]
    assert any(note.endswith("column Age stands twice; the first is used") for note in cohort.notes)


def test_rows_that_do_not_fit_are_noted(read):
    table = ONE + "sub-2\tM\t71\nsub-2\tM\t72\n\tF\t60\nsub-3\tF\t66\tx\nsub-4\tF\t5\nsub-1\tF\t70\n"
    frame, _, left_out, notes = read(table, {f"sub-{i}/ses-1": [T1, TAU] for i in (1, 2, 3)})
    assert frame["person"].tolist() == ["sub-1"]
    assert left_out["reason"].tolist() == ["no age, or no sex"] * 2
    for note in (
        "row 6: found 4 cells, expected 3 as in the header; the row is not used",
        "row 5: participant_id is empty",
        "sub-2 has more than one row, and they differ; none is used",
        "1 people of participants.tsv have no folder",
        "sub-3: not in participants.tsv",
    ):
        assert any(note in one for one in notes)


@pytest.mark.parametrize(("labels", "dates", "ages"), [
    (("M000", "M048"), ("n/a", "n/a"), [70, 74]), (("bl", "48mo"), ("n/a", "n/a"), [70, 74]),
    (("M024", "y4"), ("n/a", "n/a"), [70, 72]), (("M12", "M6"), ("n/a", "n/a"), [70.5, 70]),
    (("20120503", "20160503"), ("n/a", "n/a"), [70, 74]), (("a", "b"), ("2012-05-03", "2016-05-03"), [70, 74]),
    (("M000", "M012"), ("2012-05-03", "2014-05-03"), [70, 72]),
    (("M000", "M048"), ("1900-01-01", "1900-01-01"), [70, 74]),
    (("a", "b"), ("14:05:33", "##-##-##T12:04:14"), [70, 70]), (("a", "b"), ("03/05/2012", "2016"), [70, 70]),
])  # fmt: skip
def test_one_age_per_person_is_that_of_the_first_session(read, labels, dates, ages):
    scans = {f"sub-1/ses-{label}": {T1: date, AV45: "n/a"} for label, date in zip(labels, dates, strict=True)}
    frame, _, _, notes = read(ONE, scans)
    assert frame.set_index("session").loc[[f"ses-{label}" for label in labels], "age"].round(2).tolist() == ages
    known = f"plus {max(ages) - 70:.1f} years since the first session"
    note = known if max(ages) > 70 else "which may be that of another session"
    assert any(note in one for one in notes)
    assert sum("has no date for" in one for one in notes) == (2 if {"14:05:33", "2016"} & set(dates) else 0)
    assert ("one date" in "".join(notes)) == ("1900-01-01" in dates)
    assert frame["amyloid_days"].isna().all()  # no date of the PET, and a time of day is no date


def test_ages_in_months_and_sessions_without_a_folder(dataset, config):
    root = dataset(ONE.replace("70", "840"), {"sub-1/ses-1": [T1, AV45]}, {"sub-1": "session_id\tage\nses-2\t71\n"})
    (root / "participants.json").write_text('{"age": {"Units": "months"}, "sex": 3}')
    frame, _, _, notes = build_manifest(root, config)
    assert frame["age"].tolist() == [70.0]
    assert notes == ["participants.json: ages are in months; they are changed to years",
                     "sub-1: ses-2 of sub-1_sessions.tsv has no folder"]  # fmt: skip


@pytest.mark.parametrize("units", [
    {"sessions.json": "months"}, {"sub-1/sub-1_sessions.json": "months"},
    {"sessions.json": "days", "sub-1/sub-1_sessions.json": "months"},
])  # fmt: skip
def test_units_of_the_ages_of_sessions(dataset, config, units):
    visits = "session_id\tage\nses-1\t864\n"
    root = dataset(ONE.replace("70", "n/a"), {"sub-1/ses-1": [T1, AV45]}, {"sub-1": visits})
    for name, unit in units.items():
        (root / name).write_text(json.dumps({"Age": {"Units": unit}}))
    frame, _, _, notes = build_manifest(root, config)
    assert frame["age"].tolist() == [72.0]
    assert notes == [f"{Path(name).name}: ages are in months; they are changed to years"]


def test_the_age_of_a_first_session_that_is_late_by_its_label_is_noted(read):
    _, _, _, notes = read(ONE, {"sub-1/ses-d1500": [T1, AV45]})
    late = "age of participants.tsv is taken as that of this session, 4.1 years after baseline by its label"
    assert notes == [f"sub-1 ses-d1500: {late}"]


# ── across sessions ───────────────────────────────────────────────────────────────────────────────


def found_in(frame):
    """Session of the T1, sessions of both PETs and their days; -999: no PET, or no dates."""
    session = r"/(ses-\w+)/"
    pets = [frame[tracer].str.extract(session)[0].fillna("") for tracer in ("amyloid", "tau")]
    days = [frame[f"{tracer}_days"].fillna(-999).astype(int) for tracer in ("amyloid", "tau")]
    return list(zip(frame["session"], *pets, *days, strict=True))


def test_t1_and_pet_of_different_sessions_are_matched_by_date(dataset, config):
    root = dataset(
        ONE, {
            "sub-1/ses-mr1": {T1: "2011-03-01T23:00:00"}, "sub-1/ses-mr2": {T1: "2012-03-01"},
            "sub-1/ses-pet1": {AV45: "2011-03-11T08:00:00", TAU: "2011-04-10"},
            "sub-1/ses-pet2": {AV45: "2012-02-20T08:00:00Z"},
        },
        {"sub-1": "session_id\tage\tdiagnosis\tmmse\nmr1\t70.1\tCN\t29\nmr2\t71.1\tMCI\t27\npet1\t70.2\tAD\t20\n"},
    )  # fmt: skip
    frame, flow, left_out, notes = build_manifest(root, config)
    assert found_in(frame) == [("ses-mr1", "ses-pet1", "ses-pet1", 10, 40), ("ses-mr2", "ses-pet2", "", -10, -999)]
    assert frame[["age", "diagnosis", "mmse"]].to_numpy().tolist() == [[70.1, "CN", 29.0], [71.1, "MCI", 27.0]]
    assert flow.set_index("step").loc[["found", "has amyloid", "has tau", "kept"], "sessions"].tolist() == [2, 2, 1, 2]
    assert left_out.empty
    pairs = (
        "mr1: 18FAV45 PET of ses-pet1, +10",
        "mr1: 18FAV1451 PET of ses-pet1, +40",
        "mr2: 18FAV45 PET of ses-pet2, -10",
    )
    assert notes == [f"sub-1 ses-{pair} days from the T1w" for pair in pairs]
    with pytest.raises(ManifestError, match=r"of 4 found, 2 have a T1w, 0 amyloid or tau PET too"):
        build_manifest(root, changed(config, cohort={"match": {"same_visit": True}}))
    with pytest.raises(ManifestError, match=r"of 4 found, 2 have a T1w, 2 amyloid .* too .* 0 in the window of 9"):
        build_manifest(root, changed(config, cohort={"match": {"window_days": 9}}))


def test_what_is_filed_under_one_session_stays_together(read):
    scans = {
        "sub-1/ses-a": {T1: "2011-03-01", AV45: "2011-08-01"},  # 153 days; that of ses-b would be nearer
        "sub-1/ses-b": {T1: "2011-09-01", AV45: "2011-03-02", TAU: "2011-09-01"},  # its tau would complete ses-a
        "sub-1/ses-c": {T1: "2011-09-02"},  # has none, and gets no other
    }
    frame, _, left_out, notes = read(ONE, scans)
    assert found_in(frame) == [("ses-a", "ses-a", "", 153, -999), ("ses-b", "ses-b", "ses-b", -183, 0)]
    assert left_out.to_numpy().tolist() == [["sub-1", "ses-c", "no amyloid or tau PET"]]
    late = [f"age of participants.tsv plus {years} years since the first session" for years in (0.0, 0.5)]
    assert [note.split(": ")[1] for note in notes] == late


def test_a_session_that_lacks_one_pet_comes_before_one_that_lacks_both(read):
    scans = {
        "sub-1/ses-a": {T1: "2011-03-01", AV45: ""}, "sub-1/ses-b": {T1: "2011-06-01"},
        "sub-1/ses-c": {TAU: "2011-06-02"},
    }  # fmt: skip
    frame, _, left_out, _ = read(ONE, scans)
    assert found_in(frame) == [("ses-a", "ses-a", "ses-c", -999, 93)]
    assert left_out["session"].tolist() == ["ses-b"]


@pytest.mark.parametrize(("table", "found"), [
    ("session_id\tage\na\t70.0\nb\t70.5\n", [("ses-a", "ses-b", "", 183, -999)]),  # half of 365.25
    ("session_id\texamination_date\na\t2011-03-01\nb\t2011-03-08\n", [("ses-a", "ses-b", "", 7, -999)]),
    ("session_id\tacq_time\tage\na\t2011-03-01\t70.0\nb\tn/a\t69.8\n", [("ses-a", "ses-b", "", -73, -999)]),
    ("session_id\tacq_time\na\t2011-03-01\nb\tn/a\n", []), ("session_id\tage\na\t70.0\nb\tn/a\n", []), (None, []),
])  # fmt: skip
def test_sessions_have_dates_or_ages_or_stay_apart(read, table, found):
    undated = "its PET is of another session, and one of the two has no date"
    scans = {"sub-1/ses-a": {T1: ""}, "sub-1/ses-b": {AV45: ""}, "sub-2/ses-a": {T1: "", TAU: ""}}
    frame, _, left_out, notes = read(ONE + "sub-2\tM\t71\n", scans, {"sub-1": table} if table else None)
    assert found_in(frame[frame["person"] == "sub-1"]) == found
    assert found_in(frame[frame["person"] == "sub-2"]) == [("ses-a", "", "ses-a", -999, -999)]  # of one session
    assert left_out["reason"].tolist() == ([] if found else [undated, "no T1"])
    assert len(notes) == len(found)
    by_age = table is not None and "age" in table.split()
    assert all(note.endswith("from the T1w" + ", by the ages of the sessions" * by_age) for note in notes)


def test_a_pet_in_another_space_is_not_taken(read):
    scans = {"sub-1/ses-a": {T1: "2011-03-01"}, "sub-1/ses-b": {f"pet/trc-18FAV45_{MNI}_pet.nii.gz": "2011-03-02"}}
    with pytest.raises(ManifestError, match="of 2 found, 1 have a T1w, 0 amyloid or tau PET too"):
        read(ONE, scans)
