"""ADNI: mock downloads in each layout give exact ages, gaps and SUVRs, and the reason for each session left out."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import changed, flow
from mock_adni import AV45, FBB, MK, SITE, TAU, make_people, write_caps, write_clinica_bids, write_loni

from resdm_suite.cohorts.manifest import ManifestError, write_manifest
from resdm_suite.cohorts.readers.adni import build_manifest
from resdm_suite.cohorts.readers.adni_tables import _date, read_tables, rid_of
from resdm_suite.cohorts.tables import to_date
from resdm_suite.preprocessing.volumes import preprocess
from resdm_suite.profiles import CohortConfig, Config, GridConfig, MatchConfig, PreprocessConfig

WRITERS = {"bids": write_clinica_bids, "caps": write_caps, "loni": write_loni}
COARSE = PreprocessConfig(grid=GridConfig((24, 24, 24), 8.0), registration_mm=6.0, n4=False)
NAMED = [person.name for person in make_people()]


@pytest.fixture
def config(tmp_path):
    cohort = CohortConfig(kind="adni", source="adni", match=MatchConfig(window_days=180))
    return Config(profile="tiny", cohort=cohort, root=tmp_path)


def read(root, config, **cohort):
    """The manifest's people, notes and so on, with other settings of the cohort."""
    return build_manifest(root, changed(config, cohort=cohort))


def born_in_the_middle(person) -> pd.Timestamp:
    born = pd.Timestamp(person.day(0) - round(person.age * 365.25))
    return born.replace(day=15)


@pytest.mark.parametrize("tables", ["new", "old"])
@pytest.mark.parametrize("layout", WRITERS)
def test_each_layout_gives_the_same_people_and_numbers(tmp_path, config, layout, tables):
    mock = WRITERS[layout](tmp_path / "data", tables=tables, images=False)
    frame, steps, left_out, notes = build_manifest(mock.root, config)
    assert set(frame["person"]) == mock.kept_people
    assert len(frame) == len(mock.kept) == 11
    assert flow(steps) == {
        "found": (14, 16), "has T1": (13, 15), "has amyloid": (12, 13), "has tau": (11, 12),
        "has amyloid and tau": (11, 12), "has amyloid or tau": (12, 13), "in window": (11, 12),
        "amyloid and tau in window": (10, 11), "has age and sex": (10, 11), "kept": (10, 11),
    }  # fmt: skip
    assert left_out[["person", "reason"]].to_numpy().tolist() == [[name, reason] for name, _, reason in mock.left_out]
    assert [left_out["reason"][i] for i in range(5)] == [
        "its PET goes with a T1 that lies nearer", "PET more than 180 days from the T1", "no amyloid or tau PET",
        "no T1", "no age, or no sex",
    ]  # fmt: skip
    people = {person.name: person for person in mock.people}
    for row in frame.to_dict("records"):
        person, second = people[row["person"]], row["session"] in ("ses-M024", "ses-20140613")
        day = pd.Timestamp(person.day(24 if second else 0))
        if tables == "old":
            assert row["age"] == pytest.approx(person.age + (730 / 365.25 if second else 0), abs=1e-9)
        else:
            assert row["age"] == pytest.approx((day - born_in_the_middle(person)).days / 365.25, abs=1e-9)
        known = (row["sex"], row["diagnosis"], row["education"], row["mmse"], row["space"])
        space = "MNI152" if layout == "caps" else ""
        assert known == (person.sex, person.diagnosis, person.education, person.mmse, space)
        gaps = {4: (21, None)}.get(person.number, (10, -20) if second else (14, 30))
        if person.number == 9 and tables == "old" and layout != "loni":
            gaps = (0, 30)  # no row, so the day of the visit
        assert (row["amyloid_days"], None if np.isnan(row["tau_days"]) else row["tau_days"]) == gaps
        assert (row["amyloid_tracer"], row["tau_tracer"]) == ((FBB, "") if person.number == 4 else (AV45, TAU))
        failed = person.number == 9
        assert row["amyloid_suvr"] == pytest.approx(np.nan if failed else person.amyloid, abs=1e-9, nan_ok=True)
        cutoff = 1.08 if person.number == 4 else 1.11
        assert pd.isna(row["amyloid_status"]) if failed else row["amyloid_status"] == (person.amyloid >= cutoff)
        known = tables == "new" and not failed
        assert row["amyloid_centiloid"] == pytest.approx(person.centiloid if known else np.nan, nan_ok=True)
        if person.number != 4:
            assert row["tau_suvr"] == pytest.approx(person.tau, abs=1e-6)  # after division by 0.8 or by 1
            assert row["tau_status"] == (person.tau >= 1.27)
    message = "\n".join(notes)
    assert "1 PET of 18FMK6240 (another tau scale: never pooled): not in cohort.tracers, not read" in message
    assert ("row 12 has qc_flag 0, not used" in message) == (tables == "new")
    bare = 3 if layout == "caps" else 1  # the failed one, and in CAPS two of a person whose visits have no day
    assert f"{bare} of 28 PET have no usable row in UC Berkeley's tables and will be measured" in notes
    assert ("UCBERKELEY_AMY_6MM_15Nov2024.csv is the newest of 2 files" in message) == (tables == "new")
    assert ("are in MNI space already" in message) == (layout == "caps")
    assert frame["split"].eq("").all()


def test_a_bids_folder_alone_is_sufficient(tmp_path, config):
    mock = write_clinica_bids(tmp_path, tables="none", images=False)
    frame, _, left_out, _ = build_manifest(tmp_path, config)
    assert set(frame["person"]) == mock.kept_people
    third = frame.set_index("person").loc[NAMED[3]]
    assert (third["age"], third["diagnosis"], third["mmse"], third["education"]) == (63.5, "CN", 27, 13)
    assert frame.loc[frame["session"] == "ses-M024", "age"].round(4).tolist() == [67.4986]
    assert frame[["amyloid_suvr", "tau_suvr", "amyloid_status", "tau_status"]].isna().all(axis=None)
    assert frame["amyloid_days"].eq(0).all()  # the days of the visits are all that is known
    assert left_out.set_index("session").loc["ses-M006", "reason"] == "PET more than 180 days from the T1"


@pytest.mark.parametrize(("layout", "rec"), [("bids", "_rec-coregavg"), ("caps", "")])
def test_scan_days_take_precedence_over_visit_days(tmp_path, config, layout, rec):
    bids = tmp_path / "bids"
    person = write_clinica_bids(bids, people=1, tables="none", images=False).people[0]
    write_caps(tmp_path / "caps", people=1, tables="none", images=False)
    scans = "filename\tacq_time\nanat/{0}_T1w.nii.gz\t{1}T08:00:00\npet/{0}_trc-{2}{3}_pet.nii.gz\t{4}\n"
    stem = f"{person.name}_ses-M000"
    text = scans.format(stem, person.day(0, 5), TAU, rec, person.day(0, 65))
    (bids / person.name / "ses-M000" / f"{stem}_scans.tsv").write_text(text)
    frame = read(tmp_path / layout, config, tables=str(bids)).manifest
    assert frame[["amyloid_days", "tau_days"]].to_numpy().tolist() == [[-5, 60]]


def test_baseline_tables_describe_the_first_visit_and_later_ages_follow(tmp_path, config):
    write_clinica_bids(tmp_path, people=6, tables="none", images=False)
    for path in tmp_path.glob("sub-*/*_sessions.tsv"):
        path.unlink()
    frame = build_manifest(tmp_path, config).manifest
    visits = frame[frame["person"] == NAMED[5]]
    assert visits[["age", "diagnosis"]].to_numpy().tolist() == [[65.5, "AD"], [67.5, ""]]
    assert visits["mmse"].fillna(-1).tolist() == [25, -1]
    assert frame["amyloid_days"].isna().all()  # no day of anything: both of one visit


def test_caps_needs_tables_or_a_bids_folder(tmp_path, config):
    write_caps(tmp_path / "caps", tables="none", images=False)
    with pytest.raises(ManifestError, match=r"no session can be used.*0 also age and sex; look at .* tables"):
        build_manifest(tmp_path / "caps", config)
    bids = write_clinica_bids(tmp_path / "bids", tables="none", images=False)
    by_person = read(tmp_path / "caps", config, tables=str(bids.root)).manifest.set_index("person")
    assert set(by_person.index) == bids.kept_people
    assert ["_desc-Crop_" in by_person["t1w"][name] for name in NAMED[1:3]] == [False, True]


def test_a_visit_that_the_tables_miss_is_counted_from_baseline(tmp_path, config):
    write_caps(tmp_path, people=6, tables="old", images=False)
    merged = next((tmp_path / "tables").glob("ADNIMERGE*"))
    merged.write_text("".join(line for line in merged.open() if '"m24"' not in line))
    frame, _, _, notes = build_manifest(tmp_path, config)
    later = frame.set_index("session").loc["ses-M024"]
    assert later["age"] == pytest.approx(65.5 + 730 / 365.25)  # 24 months are 730.5 days
    assert (later["diagnosis"], later["amyloid_days"]) == ("", 10)  # the last diagnosis is two years old
    assert f"{NAMED[5]} ses-M024: no day of the visit; 24 months after baseline are taken" in notes


def test_levels_and_repeats_of_loni(tmp_path, config):
    mock = write_loni(tmp_path, images=False)
    frame, _, _, notes = build_manifest(tmp_path, config)
    by_person = frame.drop_duplicates("person").set_index("person")
    assert "Co-registered_Dynamic" in by_person["amyloid"][NAMED[0]]
    assert "/AV45_Coreg,_Avg,_Standardized_Image_and_Voxel_Size/" in by_person["amyloid"][NAMED[1]]
    assert "/Accelerated_Sag_IR-FSPGR/" in by_person["t1w"][NAMED[2]]
    message = "\n".join(notes)
    assert "1 image folders hold DICOM only and are not read; convert them with dcm2niix" in message
    assert "1 PET do not exist at level standardized; dynamic is used (cohort.pet_level)" in message
    assert f"{mock.people[2].ptid} 2012-03-12: 2 T1w" in message
    frame, _, _, notes = read(tmp_path, config, pet_level="uniform_8mm")
    assert "Uniform_Resolution" in frame.set_index("person")["amyloid"][NAMED[1]]
    assert any("PET do not exist at level uniform_8mm; standardized is used" in note for note in notes)


def test_files_that_are_no_nifti_are_counted_by_ending(tmp_path, config):
    mock = write_loni(tmp_path, people=4, images=False)
    for number, ending in enumerate((".NII", ".img", ".v")):
        for path in (tmp_path / "ADNI" / mock.people[number].ptid).rglob("*.nii*"):
            path.rename(path.with_name(path.name.partition(".nii")[0] + ending))
    frame, _, _, notes = build_manifest(tmp_path, config)
    assert set(frame["person"]) == {NAMED[0], NAMED[3]}
    for count, ending in ((6, ".img"), (5, ".v")):
        assert f"{count} image folders hold {ending} only and are not read; convert them to NIfTI" in notes


def test_a_person_of_two_sites_is_one_person(tmp_path, config):
    mock = write_loni(tmp_path, people=2, images=False)
    place = tmp_path / "ADNI" / mock.people[0].ptid
    moved = place.with_name(f"998_S_{mock.people[0].rid:04d}")
    shutil.copytree(place, moved)
    for folder in moved.glob("*/*"):
        folder.rename(folder.with_name(folder.name.replace("2012-", "2014-")))
    frame, _, _, notes = build_manifest(tmp_path, config)
    label = NAMED[0].replace("999S", "998S")
    assert frame["person"].tolist() == [label, label, NAMED[1]]
    assert frame["sex"].tolist() == ["F", "F", "M"]
    assert f"{NAMED[0]}: its RID is that of {label}; both are one person, {label}" in notes


def test_the_tracer_of_older_clinica_is_in_acq(tmp_path, config):
    write_clinica_bids(tmp_path, people=3, images=False)
    for label, word in ((AV45, "av45"), (TAU, "xyz")):
        for path in tmp_path.rglob(f"*_trc-{label}_*"):
            path.rename(path.with_name(path.name.partition("_trc-")[0] + f"_task-rest_acq-{word}_pet.nii.gz"))
    frame, _, _, notes = build_manifest(tmp_path, config)
    assert frame[["amyloid_tracer", "tau"]].to_numpy().tolist() == [[AV45, ""]] * 3
    assert frame["amyloid_suvr"].tolist() == pytest.approx([person.amyloid for person in make_people(3)])
    assert "3 PET without trc- and without a known tracer in acq-; not read" in notes


def test_options_of_matching(tmp_path, config):
    mock = write_clinica_bids(tmp_path, images=False)
    wide = read(tmp_path, config, match={"window_days": 1200}).manifest
    assert set(wide["person"]) == mock.kept_people | {NAMED[7]}
    assert wide.set_index("person").loc[NAMED[7], "amyloid_days"] == 1096
    both = read(tmp_path, config, match={"require": "both"})
    assert NAMED[4] not in set(both.manifest["person"])
    assert both.left_out.set_index("person").loc[NAMED[4], "reason"] == "no amyloid and tau PET"
    same = read(tmp_path, config, match={"window_days": 1200, "same_visit": True}).manifest
    assert NAMED[7] not in set(same["person"])
    one = read(tmp_path, config, match={"per_person": "first"})
    assert len(one.manifest) == 10
    assert "another session of the person was chosen (first)" in set(one.left_out["reason"])
    florbetaben = read(tmp_path, config, tracers={FBB: "amyloid", AV45: "amyloid", TAU: "tau"})
    assert florbetaben.manifest.set_index("person").loc[NAMED[3], "amyloid_tracer"] == FBB


def test_another_tau_tracer_may_be_read_in_place_of_flortaucipir(tmp_path, config):
    write_clinica_bids(tmp_path, images=False)
    frame = read(tmp_path, config, tracers={MK: "tau"}).manifest
    assert frame[["person", "tau_tracer"]].to_numpy().tolist() == [[NAMED[8], MK]]
    assert frame["tau_suvr"].tolist() == pytest.approx([make_people()[8].tau])


def test_scans_of_each_layout_fit_the_template_and_show_uptake(tmp_path, config):
    """The oblique, the left-handed, the one of four dimensions and those in MNI space already."""
    config = changed(config, preprocess=COARSE)
    for layout, write in WRITERS.items():
        mock = write(tmp_path / layout, people=3 if layout == "bids" else 2)
        profile = changed(config, profile=layout)
        frame = build_manifest(mock.root, profile).manifest.assign(amyloid_suvr=np.nan, tau_suvr=np.nan, split="train")
        write_manifest(frame, profile.manifest)
        index = preprocess(profile, progress=False)
        assert index["t1_correlation"].min() > 0.97
        assert index["flags"].eq("").all()
        for tracer in ("amyloid", "tau"):
            assert np.diff(index[f"{tracer}_suvr"]).min() > 0.01  # by 0.05 and 0.04 a person, less the blur


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def test_forms_of_a_rid_and_of_a_date():
    ptid = f"{SITE:03d}_S_{74:04d}"
    texts = ["74", "0074", "74.0", ptid, ptid.lower(), f"sub-ADNI{SITE}S0074", f"ADNI{SITE}S0074", " 74 "]
    assert {rid_of(text) for text in texts} == {74}
    assert [rid_of(text) for text in ("", "A74", "74.5", "-4")] == [None] * 4
    day = pd.Timestamp("2012-05-03")
    iso = ("2012-05-03", "20120503", "2012-05-03 09:12:33.0", "2012-05-03T09:12", "2012-05-03T23:12:33.000000Z")
    assert {to_date(text) for text in iso} == {day}
    assert all(to_date(text) is pd.NaT for text in ("", "n/a", "NA"))
    other = ["14:05:33", "T12:04:14", "##-##-##T12:04:14", "2012", "2012-05", "05/03/2012", "2012-05-03x10",
             "2012-05-03junk", "2012-05-03T25:00", "2012-13-01", "0000-00-00", "May 3", "1.5", "43952"]  # fmt: skip
    assert [to_date(text) for text in other] == [None] * len(other)
    assert [_date(text) for text in ("05/03/2012", "5/3/2012", "05/03/2012 09:12", "2012-05-03")] == [day] * 4
    assert [_date(text) for text in ("23/05/2012", "05/03/12", "14:05")] == [None] * 3


def tables(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_tables(folder)


AMY = "UCBERKELEY_AMY_6MM"
HEAD = "LONIUID,RID,SCANDATE,QC_FLAG,TRACER,SUMMARY_SUVR,AMYLOID_STATUS,CENTILOIDS\n"


def test_the_row_of_a_pet(tmp_path):
    rows = "I10,7,2012-01-01,2,FBP,1.2,1,-4\nI11,0007,2012-01-20,1,FBB,1.3,,-1\nI12,7.0,2014-01-01,-1,FBP,1.4,1,9\n"
    found = tables(tmp_path, UCBERKELEY_AMY_6MM=HEAD + rows)
    day = pd.Timestamp("2012-01-15")
    assert found.pet(7, AV45, day)["suvr"] == 1.2
    assert found.pet(7, AV45, day)["centiloid"] == -4
    assert found.pet(7, FBB, day)["centiloid"] == -1
    assert np.isnan(found.pet(7, FBB, day)["status"])
    assert found.pet(7, AV45, day, "12")["suvr"] == 1.4  # by LONI's number, on any day
    assert found.pet(7, AV45, pd.Timestamp("2014-01-01"))["qc"] == -1
    assert found.pet(7, AV45, pd.Timestamp("2012-03-31")) is not None  # 90 days
    assert found.pet(7, AV45, pd.Timestamp("2012-04-01")) is None
    assert found.pet(8, AV45, day) is None


def test_newer_rows_and_passed_rows_take_precedence(tmp_path):
    old = "RID,EXAMDATE,SUMMARYSUVR_WHOLECEREBNORM,SUMMARYSUVR_WHOLECEREBNORM_1.11CUTOFF\n"
    old += "7,01/01/2012,1.9,1\n8,01/01/2012,1.0,0\n"
    new = HEAD + "I1,7,2012-01-01,0,FBP,1.1,0,0\nI2,7,2012-01-01,2,FBP,1.3,1,40\n"
    found = tables(tmp_path, UCBERKELEY_AMY_6MM=new, UCBERKELEYAV45_01_14_21=old)
    assert found.pet(7, AV45, pd.Timestamp("2012-01-01"))["suvr"] == 1.3
    assert found.pet(8, AV45, pd.Timestamp("2012-01-01"))[["suvr", "status"]].tolist() == [1.0, 0.0]


def test_tau_is_always_divided(tmp_path):
    text = "RID,SCANDATE,QC_FLAG,TRACER,META_TEMPORAL_SUVR,INFERIORCEREBELLUM_SUVR\n7,2015-02-01,2,FTP,1.5,1.2\n"
    text += "8,2015-02-01,2,FTP,1.5,1\n9,2015-02-01,2,FTP,1.5,0\n7,2015-02-01,2,PI2620,2.0,1\n"
    found = tables(tmp_path, UCBERKELEY_TAU_6MM_01Feb2025=text)
    suvr = [found.pet(rid, TAU, pd.Timestamp("2015-02-01"))["suvr"] for rid in (7, 8, 9)]
    assert suvr == pytest.approx([1.25, 1.5, np.nan], nan_ok=True)
    assert found.pet(7, "18FPI2620", pd.Timestamp("2015-02-01"))["suvr"] == 2.0


def test_demographics_on_a_day(tmp_path):
    merged = (
        "RID,VISCODE,EXAMDATE,EXAMDATE_bl,DX,AGE,PTGENDER,PTEDUCAT,MMSE\n"
        "7,bl,2010-01-01,2010-01-01,CN,70.1,Female,16,29\n7,m12,2011-01-05,2010-01-01,NL to MCI,70.1,Female,16,-4\n"
        "7,m24,2012-01-02,2010-01-01,Dementia,70.1,Female,16,24\n7,m36,2013-01-02,2010-01-01,,70.1,Female,16,\n"
    )
    demog = "RID,PTGENDER,PTDOB,PTEDUCAT\n7,1,01/1900,3\n8,2,05/20/1940,-4\n9,Male,-4,12\n"
    found = tables(tmp_path, ADNIMERGE=merged, PTDEMOG_1=b"", **{"PTDEMOG_01Jan2024": demog})
    assert found.age(7, pd.Timestamp("2011-07-01")) == pytest.approx(70.1 + 546 / 365.25)
    assert found.age(8, pd.Timestamp("2010-05-20")) == pytest.approx(25567 / 365.25)
    assert np.isnan(found.age(9, pd.Timestamp("2010-05-20")))
    assert found.people[7]["sex"] == "F"  # ADNIMERGE, where both have it
    assert (found.people[8]["sex"], found.people[8].get("education"), found.people[9]["sex"]) == ("F", None, "M")
    days = [pd.Timestamp(day) for day in ("2010-06-30", "2011-01-06", "2011-12-01", "2013-01-01", "2013-01-02")]
    assert [found.diagnosis(7, day) for day in days] == ["CN", "MCI", "AD", "AD", ""]
    assert [found.score(7, day) for day in days[:3]] == [29, 24, 24]
    assert found.visits[7, 12] == pd.Timestamp("2011-01-05")
    assert (7, 6) not in found.visits


def test_diagnoses_by_change_in_old_tables(tmp_path):
    text = "RID,VISCODE2,EXAMDATE,DXCHANGE\n" + "".join(f"{n},bl,2012-01-01,{n}\n" for n in range(1, 10))
    found = tables(tmp_path, DXSUM_PDXCONV_ADNIALL=text)
    diagnoses = [found.diagnosis(n, pd.Timestamp("2012-01-01")) for n in range(1, 10)]
    assert diagnoses == ["CN", "MCI", "AD", "MCI", "AD", "AD", "CN", "MCI", "CN"]


def test_each_phase_of_the_study_has_columns_of_its_own(tmp_path):
    head = "RID,EXAMDATE,VISDATE,DXCURREN,DXCHANGE,DIAGNOSIS\n"
    rows = "1,2006-01-01,,3,,\n2,,2012-01-01,,5,-4\n3,,2017-01-01,,,2\n4,2006-01-01,,maybe,,\n"
    rows += "5,,2012-01-01,,Stable: MCI to MCI,\n"
    demog = "RID,PTDOB,PTDOBMM,PTDOBYY\n1,,5,1940\n2,06/1941,,\n"
    found = tables(tmp_path, DXSUM_PDXCONV_ADNIALL_01Jan2022=head + rows, PTDEMOG=demog)
    years = {1: 2006, 2: 2012, 3: 2017, 4: 2006, 5: 2012}
    diagnoses = [found.diagnosis(rid, pd.Timestamp(f"{year}-01-01")) for rid, year in years.items()]
    assert diagnoses == ["AD", "AD", "MCI", "", "MCI"]
    assert [found.people[rid]["born"] for rid in (1, 2)] == [pd.Timestamp("1940-05-15"), pd.Timestamp("1941-06-15")]
    (note,) = found.notes
    assert "row 5, DXCURREN: found 'maybe', expected CN, MCI, AD or a code of them; 1 such cells are taken" in note


def test_lone_quotes_join_no_rows(tmp_path):
    text = 'RID,VISDATE,NOTE,MMSCORE\n1,2012-01-01,a,30\n2,2012-01-01,"b,29\n3,2012-01-01,c,28\n4,2012-01-01,d",27\n'
    text += '5,2012-01-01,"two\nlines, of one cell",26\n'
    found = tables(tmp_path, MMSE=text)
    assert [found.score(rid, pd.Timestamp("2012-01-01")) for rid in range(1, 6)] == [30, 29, 28, 27, 26]
    assert found.notes == [f"{tmp_path / 'MMSE.csv'}: rows 3 to 5: quotes join them; each line is read as a row"]


def test_tables_that_are_absent_or_not_read_are_named(tmp_path):
    (tmp_path / "MMSE_15Nov2024.CSV").write_text("RID,VISDATE,MMSCORE\n7,2012-01-01,28\n")
    found = tables(tmp_path, PTDEMOG_final="RID\n7\n", other="RID\n7\n")
    assert found.score(7, pd.Timestamp("2012-01-01")) == 28
    assert found.absent == ["PTDEMOG", "DXSUM", "UCBERKELEY_AMY_6MM", "UCBERKELEY_TAU_6MM"]
    (note,) = found.notes
    assert note.startswith(f"{tmp_path / 'PTDEMOG_final.csv'}: not read")


def test_files_are_found_by_stem_and_the_newest_is_read(tmp_path):
    row = "I1,7,2012-01-01,2,FBP,{},1,\n"
    (tmp_path / "study").mkdir()
    names = {"x_02Jan2023": 1.5, "x_15Nov2024 (1)": 1.6, "x_08_17_22": 1.7, "study/All_Subjects_x_01Feb2024": 1.8}
    files = {name.replace("x", AMY): HEAD + row.format(suvr) for name, suvr in names.items()}
    found = tables(tmp_path, **files, UCBERKELEY_AMYPVC_6MM_01Jan2026="nothing")
    assert found.pet(7, AV45, pd.Timestamp("2012-01-01"))["suvr"] == 1.6
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"{AMY}_15Nov2024 (1).csv is the newest of 4 files")


def test_of_a_table_under_its_old_and_new_name_the_newest_is_read(tmp_path):
    old, new = "RID,EXAMDATE,DXCHANGE\n7,2012-01-01,1\n", "RID,EXAMDATE,DIAGNOSIS\n7,2012-01-01,2\n"
    found = tables(tmp_path, DXSUM_PDXCONV_ADNIALL_01Jan2020=old, DXSUM_15Mar2025=new)
    assert found.diagnosis(7, pd.Timestamp("2012-01-01")) == "MCI"
    newest = "DXSUM_15Mar2025.csv is the newest of 2 files of DXSUM; not read: DXSUM_PDXCONV_ADNIALL_01Jan2020.csv"
    assert found.notes == [newest]


def test_a_row_without_a_date_has_that_of_its_visit(tmp_path):
    dxsum = "RID,EXAMDATE,VISCODE2,DIAGNOSIS\n7,2012-01-10,bl,2\n7,2013-01-20,m12,\n7,,m24,3\n7,,f,3\n"
    mmse = "RID,VISDATE,VISCODE2,MMSCORE\n7,,m12,22\n7,2012-01-09,sc,25\n7,2014-01-12,m24,20\n8,,m12,29\n"
    found = tables(tmp_path, DXSUM=dxsum, MMSE=mmse)
    days = [pd.Timestamp(day) for day in ("2012-01-10", "2013-01-20", "2014-01-12")]
    assert [found.score(7, day) for day in days] == [25, 22, 20]
    assert [found.diagnosis(7, day) for day in (days[0], days[2])] == ["MCI", "AD"]
    assert found.visits[7, 0] == days[0]  # the first table's
    lost = "1 rows have neither a date nor a visit code whose date a table states; not used"
    assert found.notes == [f"{tmp_path / name}.csv: {lost}" for name in ("DXSUM", "MMSE")]


def test_a_pet_without_a_date_is_noted(tmp_path):
    found = tables(tmp_path, **{AMY: HEAD + "I1,7,,2,FBP,1.2,1,0\nI2,7,2012-01-01,2,FBP,1.2,1,0\n"})
    assert (len(found.pets), found.notes) == (1, [f"{tmp_path / AMY}.csv: 1 rows of PET have no date; not used"])


@pytest.mark.parametrize(("name", "text", "message"), [
    (AMY, HEAD + "I1,7,2012-01-01,2,FBP,1.2,1,0\n\nI2,7,01/32/2013,2,FBP,1.2,1,0\n",
     "row 4, SCANDATE: found '01/32/2013', expected a date, YYYY-MM-DD or MM/DD/YYYY; 1 such cells are taken"),
    (AMY, HEAD + 'I1,7,2012-01-01,2,FBP,"1,2",1,0\n', "row 2, SUMMARY_SUVR: found '1,2', expected a number"),
    (AMY, HEAD + "I1,7,2012-01-01,2,FBP,12,1,0\n", "row 2, SUMMARY_SUVR: found '12', expected a number from 0.2"),
    (AMY, HEAD + "I1,7,2012-01-01,2,XYZ,1.2,1,0\n", "row 2, TRACER: found 'XYZ', expected FBP, AV45, FBB, NAV"),
    (AMY, HEAD + "I1,seven,2012-01-01,2,FBP,1.2,1,0\n", "row 2: RID 'seven' name no person or two, expected a RID"),
    (AMY, HEAD + "I1,7,2012-01-01,2,FBP,1.2,1,0,5\n", "row 2: found 9 cells, expected 8 as in the header; the row is"),
    ("PTDEMOG", "RID,PTGENDER,PTDOB,PTEDUCAT\n7,3,05/1940,12\n", "row 2, PTGENDER: found '3', expected Male"),
    ("PTDEMOG", "RID,PTGENDER,PTDOB,PTEDUCAT\n7,1,1940,12\n", "row 2, PTDOB: found '1940', expected MM/YYYY"),
    ("PTDEMOG", f"RID,PTID,PTGENDER,PTDOB\n8,{SITE}_S_0007,1,05/1940\n", "name no person or two, expected a RID"),
    ("ADNIMERGE", "RID,EXAMDATE,EXAMDATE_bl,AGE\n7,2012-01-01,2012-01-01,400\n", "row 2, AGE: found '400', exp"),
    ("MMSE", "RID,VISDATE,MMSCORE\n7,2012-01-01,31\n", "row 2, MMSCORE: found '31', expected a number from 0"),
])  # fmt: skip
def test_a_cell_that_is_none_is_taken_as_missing_and_noted(tmp_path, name, text, message):
    note = tables(tmp_path, **{name: text}).notes[0]
    assert note.startswith(f"{tmp_path / name}.csv: row ")
    assert message in note


@pytest.mark.parametrize(("text", "message"), [
    (HEAD.replace("SUMMARY_SUVR,", ""), "no column SUMMARY_SUVR or SUMMARYSUVR_WHOLECEREBNORM; download"),
    (HEAD + "I1,7,05/01/2012,2,FBP,1.2,1,0\nI2,7,23/01/2013,2,FBP,1.2,1,0\n",
     "row 3, SCANDATE: found '23/01/2013', a date with the day first, as a spreadsheet may save it; download"),
    (HEAD.replace(",", ";"), "columns are separated by semicolons or tabs"),
    ("", "empty; expected a header"), ("SITE,VISCODE\n1,bl\n", "no column RID or PTID; found SITE, VISCODE"),
])  # fmt: skip
def test_a_table_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(ManifestError) as error:
        tables(tmp_path, **{AMY: text})
    assert f"{tmp_path / AMY}.csv: {message}" in str(error.value)


def test_other_encodings_and_flags_in_words_are_read(tmp_path):
    text = "RID,VISDATE,MMSCORE,NOTE\n7,2012-01-01,28,patient\x92s word\n"
    for encoding in ("latin-1", "utf-16"):
        assert tables(tmp_path, MMSE_01Jan2024=text.encode(encoding)).score(7, pd.Timestamp("2012-01-01")) == 28
    rows = HEAD + "I1,7,2012-01-01,Pass,FBP,1.2,1,0\nI2,8,2012-01-01,Fail,FBP,1.2,1,0\n"
    found = tables(tmp_path, UCBERKELEY_AMY_6MM=rows)
    assert [found.pet(rid, AV45, pd.Timestamp("2012-01-01"))["qc"] for rid in (7, 8)] == [2, 0]


NEVER = (
    "AV45_NAC_Coreg", "ADNI_Brain_NAC_3D_AV45", "AV45_Non-AC", "PET_AV45_without_Attenuation_Correction", "AV45_CTAC",
    "CT_AV45", "AV45_MuMap", "AV45_Attenuation_Map", "AV45_uMAP", "AV45_Brain_Mask", "MPRAGE_Masked", "T1_Map",
    "AV45_Transmission", "AV45_MRAC",
)  # fmt: skip


@pytest.mark.parametrize("sequence", NEVER)
def test_maps_masks_and_pet_without_attenuation_correction_are_never_taken(tmp_path, config, sequence):
    mock = write_loni(tmp_path, people=2, images=False)
    for what in ("FSPGR", "AV45"):
        path = next(path for path in mock.files if what in str(path) and mock.people[1].ptid in str(path))
        place = path.parents[2].with_name(sequence) / path.parents[1].name / "I1"  # of the same date
        place.mkdir(parents=True, exist_ok=True)
        (place / "scan.nii").touch()
    for folder in tmp_path.glob(f"ADNI/{mock.people[1].ptid}/AV45_Co*"):
        shutil.rmtree(folder)
    frame, _, _, notes = build_manifest(tmp_path, config)
    assert frame["t1w"].str.contains("FSPGR").all()
    assert frame["amyloid_tracer"].tolist() == [AV45, ""]
    assert any(f" images of {sequence}: without attenuation corr" in note for note in notes)


def test_loni_with_names_that_begin_with_a_dot(tmp_path, config):
    write_loni(tmp_path, people=2, images=False)
    before = build_manifest(tmp_path, config)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name("._" + path.name).write_bytes(b"\x00\x05\x16\x07\xb0")
        path.with_name(".DS_Store").touch()
    after = build_manifest(tmp_path, config)
    pd.testing.assert_frame_equal(after.manifest, before.manifest)
    assert after.notes == before.notes


@pytest.mark.parametrize(("sequence", "image", "days", "found"), [
    ("ADNI_Brain_AC_3D_Tau", "I5", 0, TAU), ("ADNI_Brain_PET__Raw_Tau", "I5", 0, TAU),
    ("ADNI_Brain_PET__Raw", "I5", 0, TAU),
    ("Brain_AC_3D_Tau", "I5", 3, ""), ("Brain_AC_3D_Amyloid", "I5", 0, ""), ("FDG_Brain_AC", "I5", 0, ""),
    ("Coreg,_Avg,_Standardized_Image_and_Voxel_Size", "I5", 0, ""), ("Brain_AC", "I77", 9, AV45),
])  # fmt: skip
def test_a_tracer_that_the_name_omits_is_that_of_the_table(tmp_path, config, sequence, image, days, found):
    mock = write_loni(tmp_path, people=2, images=False)
    person = mock.people[1]
    for folder in tmp_path.glob(f"ADNI/{person.ptid}/AV*"):
        shutil.rmtree(folder)
    table = next(tmp_path.glob("tables/*AMY*Nov2024.csv"))
    table.write_text(table.read_text().replace('"I1"', '"I77"'))
    day = f"{person.day(0, 30 + days)}_09_12_33.0"
    place = tmp_path / "ADNI" / person.ptid / sequence / day / image
    place.mkdir(parents=True)
    (place / "scan.nii").touch()
    frame, _, _, notes = build_manifest(tmp_path, config)
    labels = frame.loc[frame["person"] == person.name, ["amyloid_tracer", "tau_tracer"]].to_numpy().ravel()
    assert {*labels} - {""} == {found} - {""}
    read, unread = f"{sequence} names no tracer; by UC Berkeley's table it is", f" images of {sequence}: no T1,"
    assert any((f"{read} {found}" if found else unread) in one for one in notes)


# ── layouts ───────────────────────────────────────────────────────────────────────────────────────


def test_folders_without_a_download_are_named(tmp_path, config):
    with pytest.raises(ManifestError, match="nowhere: no such folder; expected an ADNI download"):
        build_manifest(tmp_path / "nowhere", config)
    with pytest.raises(ManifestError, match=r"looked for sub-\* \(Clinica BIDS\), subjects/sub-\* \(Clinica CAPS\) "):
        build_manifest(tmp_path, config)
    write_loni(tmp_path, people=1, images=False)
    with pytest.raises(ManifestError, match=r"set match\.same_visit: false"):
        read(tmp_path, config, match={"same_visit": True})
    with pytest.raises(ManifestError, match=r"away: no such folder of tables; correct cohort\.tables"):
        read(tmp_path, config, tables="away")
    write_clinica_bids(tmp_path, people=1, images=False)
    with pytest.raises(ManifestError, match=r"more than one layout: BIDS in .*, LONI in .*ADNI; name one"):
        build_manifest(tmp_path, config)


def test_loni_as_dicom_or_with_a_renamed_folder(tmp_path, config, caplog):
    mock = write_loni(tmp_path, people=1, images=False)
    t1 = next(path for path in mock.files if "FSPGR" in str(path))
    renamed = t1.parent.parent.with_name("day one")
    t1.parent.parent.rename(renamed)
    with pytest.raises(ManifestError, match=r"the first is .*: no T1"):
        build_manifest(tmp_path, config)
    assert "found 'day one' as date and time, expected 2012-05-03_09_12_33.0 or the like; not read" in caplog.text
    renamed.rename(t1.parent.parent)
    for path in mock.files:
        path.rename(path.with_name("1.dcm"))
    with pytest.raises(ManifestError, match=r"no T1 and no PET as NIfTI .*; 3 image folders hold DICOM only: convert"):
        build_manifest(tmp_path, config)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("\tF\t", "\tX\t", "sex: found 'X', expected F, M"),
    ("\t60.5", "\t6O.5", "age: found '6O.5000', expected a number"),
    ("\t30\t", "\t99\t", "mmse: found '99', expected a number from 0 to 30; left empty"),
    ("2012-01", "2012-31", "examination_date: found '2012-31-10', expected a date, YYYY-MM-DD; taken as missing"),
    ("2012-01-10", "10:12:31", "examination_date: found '10:12:31', expected a date"),
    ("ses-M000", "ses-M001", "1 rows of sessions.tsv have no folder: sub-ADNI999S0007 ses-M001"),
])  # fmt: skip
def test_one_entry_of_clinica_stops_nobody_else(tmp_path, config, old, new, message):
    write_clinica_bids(tmp_path, people=2, tables="none", images=False)
    for table in (tmp_path / "participants.tsv", tmp_path / NAMED[0] / f"{NAMED[0]}_sessions.tsv"):
        table.write_text(table.read_text().replace(old, new))
    frame, _, left_out, notes = build_manifest(tmp_path, config)
    assert NAMED[1] in set(frame["person"])
    assert message in "\n".join([*notes, *left_out["reason"]])


def test_a_folder_without_a_ptid_is_not_used(tmp_path, config):
    write_clinica_bids(tmp_path, people=2, tables="none", images=False)
    (tmp_path / "sub-copy" / "ses-M000" / "anat").mkdir(parents=True)
    found = build_manifest(tmp_path, config)
    assert len(found.manifest) == 2
    assert "sub-copy: a name without PTID, expected Clinica's sub-ADNI, site, S and RID; not used" in found.notes
