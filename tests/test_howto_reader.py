"""The reader of docs/howto_add_a_cohort_reader.md works as the page states."""

import dataclasses
import re
import types

from conftest import ROOT

from resdm_suite.cohorts.manifest import check_manifest
from resdm_suite.profiles import CohortConfig, Config, MatchConfig

FILES = ("OAS30001_MR_d0010", "OAS30001_AV45_d0040", "OAS30001_AV1451_d0300", "OAS30001_PIB_d1000", "OAS30002_MR_d0000",
         "OAS30003_MR_d0000")  # fmt: skip


def test_the_reader_of_the_page_lists_pairs_and_leaves_out(tmp_path):
    page = (ROOT / "docs" / "howto_add_a_cohort_reader.md").read_text(encoding="utf-8")
    reader = types.ModuleType("oasis3")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], reader.__dict__)
    for name in FILES:
        (tmp_path / name).mkdir()
        for scan in ("T1w", "T2w", "run-02_T1w") if "_MR_" in name else ("pet",):
            (tmp_path / name / f"{name}_{scan}.nii.gz").touch()
            (tmp_path / name / f"._{name}_{scan}.nii.gz").touch()
    (tmp_path / "demographics.csv").write_text("Subjectid,AgeatEntry,GENDER\nOAS30001,70,F\nOAS30002,65,M\n")
    cohort = CohortConfig(kind="other", match=MatchConfig(window_days=180))
    config = Config(profile="t", cohort=cohort, root=tmp_path / "work")
    cohort = reader.build_manifest(tmp_path, config)
    row = check_manifest(cohort.manifest, "here").iloc[0]
    assert (row["person"], row["session"], row["sex"], row["amyloid_days"], row["tau"]) == (
        "sub-OAS30001", "ses-d0010", "F", 30, "",
    )  # fmt: skip
    assert round(row["age"], 3) == 70.027
    assert cohort.left_out.to_numpy().tolist() == [["sub-OAS30002", "ses-d0000", "no amyloid or tau PET"]]
    assert row["t1w"].endswith("T1w.nii.gz")
    assert cohort.notes == [
        "OAS30001_MR_d0010: 2 scans; OAS30001_MR_d0010_T1w.nii.gz is used",
        "OAS30001_PIB_d1000: no MR, AV45 or AV1451; not read",
        "OAS30002_MR_d0000: 2 scans; OAS30002_MR_d0000_T1w.nii.gz is used",
        "OAS30003_MR_d0000: not in demographics.csv; not read",
    ]
    config = dataclasses.replace(config, cohort=CohortConfig(tracers={"18FAV45": "amyloid"}))
    unread = "OAS30001_AV1451_d0300: 18FAV1451 is not in cohort.tracers; not read"
    assert unread in reader.build_manifest(tmp_path, config).notes
