"""The manifest: refused tables and their messages, and the split by person."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_cohort import sessions

from resdm_suite.cohorts.manifest import (
    COLUMNS,
    DIAGNOSES,
    SCHEMA,
    SPLITS,
    LeakageError,
    ManifestError,
    check_leakage,
    read_manifest,
    write_manifest,
)
from resdm_suite.cohorts.splits import split_card, split_digest, split_people
from resdm_suite.profiles import SplitConfig

DOCUMENTED = Path(__file__).resolve().parents[1] / "data_manifests"


def test_a_manifest_survives_writing_and_reading(table):
    path = table()
    frame = read_manifest(path)
    assert tuple(frame.columns) == COLUMNS
    assert Path(frame["t1w"][0]).is_absolute()
    assert "scans/0_0_T1w.nii.gz" in path.read_text().splitlines()[1].split(",")  # relative in the file
    before = path.read_bytes()
    write_manifest(frame.sample(frac=1, random_state=0), path)
    assert path.read_bytes() == before
    assert frame["amyloid_status"].isna().all()
    assert frame["age"].dtype == float
    odd = {"t1w": '/a ,;"é<b>#%日.nii', "mmse": np.nan, "education": 0.1234, "amyloid_days": -7305, "tau_suvr": 9.9999}
    odd |= {"space": "MNI152", "tau_status": 1, "age": 109.9999, "split": "test"}
    frame.loc[frame["person"] == frame["person"][0], list(odd)] = list(odd.values())
    again = read_manifest(write_manifest(frame, path), files=False)
    pd.testing.assert_frame_equal(again, frame, check_exact=True)


CELLS = st.text(max_size=12) | st.sampled_from([
    "-", "1e999", "nan", "../../etc/passwd", "sub-1/../x", '"', "a,b", "\x00", "\n", "=1+1", "<b>", "1_0",
    "٣", "9" * 400,
])  # fmt: skip


@given(st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_cell_and_no_byte_ends_in_a_traceback(table, tmp_path, data):
    """A damaged table is read or refused; labels of people are safe as names of folders."""
    text = table().read_text()
    if data.draw(st.booleans()):
        lines = [line.split(",") for line in text.splitlines()]
        row, column = data.draw(st.integers(0, len(lines) - 1)), data.draw(st.integers(0, len(lines[0]) - 1))
        lines[row][column] = data.draw(CELLS)
        damaged = "\n".join(map(",".join, lines)).encode("utf-8", "surrogatepass")
    else:
        place = data.draw(st.integers(0, len(text)))
        after = place + data.draw(st.integers(0, 9))
        damaged = text[:place].encode() + data.draw(st.binary(max_size=6)) + text[after:].encode()
    path = tmp_path / "damaged.csv"
    path.write_bytes(damaged)
    with contextlib.suppress(ManifestError, LeakageError):
        frame = read_manifest(path, files=False)
        assert frame["person"].str.fullmatch("sub-[A-Za-z0-9]+").all()
        assert frame["age"].between(18, 110).all()


def test_a_hand_written_table_may_leave_optional_columns_out(table):
    first = read_manifest(table()).iloc[0]
    head = "\ufeffperson,session,age,sex,t1w,tau,tau_tracer\r\n"
    frame = read_manifest(table(text=f"{head}sub-1,ses-1, 71.5 ,F,{first['t1w']},{first['t1w']},18FAV1451\r\n\r\n"))
    assert frame.loc[0, ["age", "sex", "diagnosis", "amyloid", "split"]].tolist() == [71.5, "F", "", "", ""]
    assert np.isnan(frame.loc[0, "mmse"])


def test_a_missing_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(ManifestError, match=r"m\.csv: no such manifest; make one with `resdm manifest`"):
        read_manifest(tmp_path / "m.csv")


def test_many_missing_files_are_counted_and_the_first_named(table):
    path = table()
    frame = read_manifest(path)
    for cell in frame["t1w"]:
        Path(cell).unlink()
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    lines = str(error.value).splitlines()
    assert len(frame) > 5
    assert len(lines) == 6
    assert lines[-1] == f"… and {len(frame) - 5} more, {len(frame)} in all"
    read_manifest(path, files=False)


def test_the_dictionary_of_columns_is_that_of_the_schema():
    documented = pd.read_csv(DOCUMENTED / "columns.csv", keep_default_na=False).set_index("column")
    assert tuple(documented.index) == COLUMNS
    for name, column in SCHEMA.columns.items():
        row = documented.loc[name]
        assert row["description"] == column.description
        assert row["values"] == (column.checks[0].error if column.checks else "")
        assert row["unit"] == (column.metadata or {}).get("unit", "")
        assert (row["required"] == "yes") == column.required
    template = read_manifest(DOCUMENTED / "template.csv", files=False)
    assert len(template) == 3


# ── the split ─────────────────────────────────────────────────────────────────────────────────────


@given(
    st.lists(st.tuples(st.sampled_from(DIAGNOSES), st.sampled_from("FM"), st.integers(0, 2), st.integers(1, 3)),
             min_size=12, max_size=90),
    st.integers(0, 2**64 - 1), st.floats(0.1, 0.4), st.floats(0.1, 0.3), st.integers(3, 6), st.randoms(),
)  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_split_is_by_person_in_the_shares_of_the_profile(people, seed, test, validation, folds, random):
    frame = pd.DataFrame([
        {"person": f"sub-{number}", "session": f"ses-{visit}", "age": 70.0 + visit, "diagnosis": diagnosis, "sex": sex,
         "amyloid": "a" * (pets != 1), "tau": "t" * (pets != 0)}
        for number, (diagnosis, sex, pets, visits) in enumerate(people) for visit in range(visits)
    ])  # fmt: skip
    drawn = {"one": split_people(frame, SplitConfig(test, validation), seed)}
    drawn |= {fold: split_people(frame, SplitConfig(folds=folds, fold=fold), seed) for fold in range(folds)}
    for fold, split in drawn.items():
        check_leakage(split, "here")
        count = split.drop_duplicates("person")["split"].value_counts()
        assert set(count.index) == set(SPLITS)
        share, rest = (test, validation) if fold == "one" else (1 / folds, 0.1)
        assert abs(count["test"] - share * len(people)) <= (0.5 if fold == "one" else 1)
        assert abs(count["validation"] - rest * len(people)) <= 1
    assert (sum((drawn[fold]["split"] == "test").astype(int) for fold in range(folds)) == 1).all()
    order = random.sample(range(len(frame)), len(frame))
    again = split_people(frame.iloc[order], SplitConfig(test, validation), seed)
    pd.testing.assert_series_equal(again["split"].sort_index(), drawn["one"]["split"])


def test_another_seed_is_another_split():
    frame = sessions(80)
    one, other = (split_people(frame, SplitConfig(), seed)["split"] for seed in (3, 4))
    assert 0.1 < (one != other).mean() < 0.7
    drawn = split_people(sessions(1274), SplitConfig(), 0).drop_duplicates("person")["split"].value_counts()
    assert abs(drawn["test"] - 254) <= 1  # the paper tests 254 of its 1274 sets


@pytest.mark.parametrize("seed", range(3))
def test_every_stratum_is_shared_out(seed):
    """Of each diagnosis × sex with both tracers, a fifth is tested, to within a person or so; so are rare strata."""
    frame = split_people(sessions(300, seed), SplitConfig(), seed).drop_duplicates("person")
    both = (frame["amyloid"] != "") & (frame["tau"] != "")
    for _, stratum in frame[both].groupby(["diagnosis", "sex"]):
        assert abs((stratum["split"] == "test").sum() - 0.2 * len(stratum)) <= 1
        assert abs((stratum["split"] == "validation").sum() - 0.1 * len(stratum)) <= 2
    rare = frame[~both]
    assert 0.05 < (rare["split"] == "test").mean() < 0.4


def test_anybody_can_become_a_test_person():
    frame = sessions(20)
    often = sum(split_people(frame, SplitConfig(), seed)["split"].eq("test").to_numpy() for seed in range(60))
    assert often.min() > 0
    assert often.max() < 35


def test_the_stratum_is_that_of_the_youngest_age_not_of_the_first_name():
    visits = [("ses-2", 71.0, "CN"), ("ses-10", 75.0, "AD")]  # "ses-10" sorts before "ses-2"
    frame = pd.DataFrame(visits, columns=["session", "age", "diagnosis"])
    frame = frame.assign(person="sub-1", sex="F", amyloid="a", tau="", split="test")
    assert list(split_card(frame, None, 0)["strata"]) == ["CN +- F"]


def test_too_few_people_are_refused():
    with pytest.raises(ManifestError, match="2 people are too few: nobody is left for"):
        split_people(sessions(2), SplitConfig(), 0)


def test_the_card_of_a_split_counts_and_names_nobody():
    frame = split_people(sessions(60), SplitConfig(folds=5, fold=2), 7)
    card = split_card(frame, SplitConfig(folds=5, fold=2), 7)
    assert card["digest"] == split_digest(frame.sample(frac=1, random_state=0))
    assert card["drawn"] == {"seed": 7, "folds": 5, "fold": 2, "validation": 0.1}
    assert card["people"] == frame.drop_duplicates("person")["split"].value_counts()[list(SPLITS)].to_dict()
    assert sum(sum(row.values()) for row in card["strata"].values()) == 60
    assert all(stratum.split()[1] in ("++", "+-", "-+") for stratum in card["strata"])
    assert "sub-" not in json.dumps(card)
    people = frame[["person", "split"]].drop_duplicates().sort_values("person")
    lines = people.to_csv(sep="\t", header=False, index=False)
    assert card["digest"] == hashlib.sha256(lines.encode()).hexdigest()
    swapped = frame.assign(split=frame["split"].replace({"test": "train", "train": "test"}))
    assert split_digest(swapped) != card["digest"]
    assert split_card(swapped, SplitConfig(), 7)["drawn"] == {"seed": 7, "test": 0.2, "validation": 0.1}
    assert split_card(swapped, None, 7)["drawn"] is None
