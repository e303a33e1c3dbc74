"""The folders of the released code: lists, table, and the space in the headers."""

from __future__ import annotations

import shutil

import pytest
from mock_sources import participant, write_released

from resdm_suite.cohorts.assembly import make_manifest
from resdm_suite.cohorts.manifest import LeakageError, ManifestError, read_manifest
from resdm_suite.cohorts.readers.released_layout import build_manifest
from resdm_suite.profiles import CohortConfig, Config


@pytest.fixture(scope="module")
def mock(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("mock"), heads=False)


@pytest.fixture
def config(tmp_path):
    return Config(profile="tiny", cohort=CohortConfig(kind="other", source="released"), root=tmp_path)


@pytest.fixture
def copy(mock, tmp_path):
    """A copy to change: ``data_info`` is copied, the volumes are links."""
    root = tmp_path / "released"
    shutil.copytree(mock.root / "data_info", root / "data_info")
    (root / "data").symlink_to(mock.root / "data")
    return root


def test_the_folders_become_the_manifest_with_their_split(mock, config):
    found = build_manifest(mock.root, config)
    mock.check(found)
    assert dict(zip(found.manifest["person"], found.manifest["split"], strict=True)) == mock.split
    row = found.manifest.set_index("person").loc[f"sub-{participant(4)}"]
    assert row[["age", "sex", "diagnosis", "amyloid_tracer"]].tolist() == [65.0, "F", "MCI", "18FAV45"]
    make_manifest(config, mock.root)
    assert read_manifest(config.manifest).groupby("split").size().to_dict() == {"test": 3, "train": 6, "validation": 3}


def test_the_headers_decide_which_sessions_are_in_mni_space(mock, config):
    found = build_manifest(mock.root, config)
    odd = [person for person, space in zip(found.manifest["person"], found.manifest["space"], strict=True) if space]
    assert odd == sorted(f"sub-{participant(i)}" for i in (1, 7, 9, 11, 13))
    assert "headers state MNI152 for 7 sessions, which are resampled; the other 7 are registered" in found.notes


def test_one_person_in_two_lists_is_refused(copy, config):
    lists = {split: copy / "data_info" / f"{split}.txt" for split in ("train", "test")}
    name = lists["train"].read_text().split()[0]
    before = lists["test"].read_text()
    lists["test"].write_text(f"{before} {name}.nii\n")
    with pytest.raises(LeakageError, match=rf"test\.txt: {name} is in train\.txt too\. .*--draw-split"):
        make_manifest(config, copy)
    make_manifest(config, copy, draw=True)
    split = read_manifest(config.manifest).groupby("split").size().to_dict()
    assert split == {"test": 2, "train": 9, "validation": 1}


def test_two_visits_of_one_person_in_two_lists_are_refused(mock, copy, config):
    """Two IDs of one participant, by the number."""
    (copy / "data").unlink()
    shutil.copytree(mock.root / "data", copy / "data")
    name = (copy / "data_info" / "train.txt").read_text().split()[0]
    for folder in ("whole_MRI", "whole_Abeta"):
        source = copy / "data" / folder / f"{name}.nii"
        if source.is_file():
            shutil.copy(source, source.with_name(f"{name}_m24.nii"))
    with open(copy / "data_info" / "data_info.csv", "a") as table:
        table.write(f"{name}_m24,70,F,CN,\n")
    with open(copy / "data_info" / "test.txt", "a") as test:
        test.write(f"{name}_m24\n")
    with pytest.raises(LeakageError, match=rf"sub-{name} in test and train.*draw the split again by person: `resdm"):
        build_manifest(copy, config)
    frame = build_manifest(copy, config, draw=True).manifest
    assert frame[frame["person"] == f"sub-{name}"]["session"].tolist() == ["ses-1", "ses-m24"]


def test_people_with_rids_of_five_digits_stay_apart(mock, copy, config):
    (copy / "data").unlink()
    ids = {"999S10123": "train", "999S10129": "validation", "999S10222": "test", "999S1012": "train"}
    for folder in ("whole_MRI", "whole_Abeta"):
        (copy / "data" / folder).mkdir(parents=True)
        for name in ids:
            shutil.copy(
                mock.root / "data" / folder / f"{participant(0)}.nii", copy / "data" / folder / f"{name}_m12.nii"
            )
    rows = "".join(f"{name}_m12,7{i},F\n" for i, name in enumerate(ids))
    (copy / "data_info" / "data_info.csv").write_text("ID,Age,Sex\n" + rows)
    for split in ("train", "validation", "test"):
        (copy / "data_info" / f"{split}.txt").write_text(" ".join(f"{n}_m12" for n, of in ids.items() if of == split))
    frame = build_manifest(copy, config).manifest.set_index("person")
    assert frame["split"].to_dict() == {f"sub-{name}": split for name, split in ids.items()}
    assert frame["session"].eq("ses-m12").all()


def test_people_in_no_list_are_not_used(copy, config):
    path = copy / "data_info" / "train.txt"
    names = path.read_text().split()
    path.write_text(" ".join(names[1:]))
    found = build_manifest(copy, config)
    assert f"1 volumes of data/whole_MRI are in no list ({names[0]} …); not used" in found.notes
    assert f"sub-{names[0]}" not in set(found.manifest["person"])


@pytest.mark.parametrize(("file", "text", "message"), [
    ("data_info.csv", "ID,Age\nx,70\n", "data_info.csv: no column sex; found id, age"),
    ("data_info.csv", "", "data_info.csv: empty; expected a header"),
    ("data_info.csv", None, "no data_info.csv; expected a table with columns ID, Age, Sex"),
    ("validation.txt", None, "validation.txt: no such list; write one, or draw the split: --draw-split"),
    ("validation.txt", "{0} naïve", "validation.txt: not UTF-8; save it as plain text in UTF-8"),
])  # fmt: skip
def test_invalid_folders_are_named(copy, config, file, text, message):
    path = copy / "data_info" / file
    path.unlink()
    if text is not None:
        path.write_text(text.format(participant(0)), encoding="latin-1")
    with pytest.raises(ManifestError) as error:
        build_manifest(copy, config)
    assert message.format(participant(0)) in str(error.value)


@pytest.mark.parametrize(("rows", "reason", "note"), [
    ("{0},70,F\n{0},71,F\n", "no age, or no sex", "{0} has more than one row, and they differ; none is used"),
    ("{0},7O,F\n", "age: found '7O', expected a number from 18 to 110", ""),
    ("{0},70,x\n", "sex: found 'x', expected F, M", ""),
])  # fmt: skip
def test_one_row_stops_nobody_else(copy, config, rows, reason, note):
    table = copy / "data_info" / "data_info.csv"
    lines = table.read_text("latin-1").splitlines(keepends=True)
    kept = "".join(line for line in lines if not line.startswith(participant(0)))
    table.write_text(kept.replace(",Note", "").replace(",naïve", "") + rows.format(participant(0)))
    found = build_manifest(copy, config)
    assert found.left_out.set_index("person").loc[f"sub-{participant(0)}", "reason"] == reason
    assert any(note.format(participant(0)) in one for one in found.notes)


@pytest.mark.parametrize("names", [("A-1", "A1"), (participant(0), f"{participant(0)}_1")])
def test_two_ids_that_mean_one_session_are_refused(copy, config, names):
    for split in ("train", "validation", "test"):
        (copy / "data_info" / f"{split}.txt").write_text(" ".join(names) if split == "train" else "")
    with pytest.raises(ManifestError, match=f"IDs {names[0]} and {names[1]} both mean sub-.+ ses-1; rename one"):
        build_manifest(copy, config)


def test_another_folder(config, tmp_path):
    with pytest.raises(ManifestError, match="no folder data/whole_MRI; expected the released layout"):
        build_manifest(tmp_path, config)
