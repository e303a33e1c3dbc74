"""A corpus of bad tables: each error names file, row, value and remedy; existing files stay as they were."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pandas as pd
import pytest

from resdm import io
from resdm_suite.cohorts.manifest import LeakageError, ManifestError, read_manifest, write_manifest

CELLS = [  # row, column, what is written there, found, expected
    (1, "sex", "X", "'X'", "F, M; recode the sex, or leave the person out"),
    (1, "sex", "female", "'female'", "F, M; recode"),
    (1, "sex", "", "nothing", "F, M"),
    (2, "age", "400", "400", "18 to 110"),
    (2, "age", "0", "0", "18 to 110"),
    (2, "age", "old", "'old'", "18 to 110"),
    (2, "age", "71,5", "'71,5'", "decimals with a point"),
    (2, "age", "inf", "'inf'", "18 to 110"),
    (2, "age", "7_0", "'7_0'", "18 to 110"),  # Python reads it as 70
    (2, "age", "\u0667\u0660", "'\u0667\u0660'", "18 to 110"),  # digits of other scripts
    (2, "age", "", "nothing", "18 to 110"),
    (0, "diagnosis", "Dementia", "'Dementia'", "CN, MCI, AD or nothing; recode the diagnosis, or leave the cell empty"),
    (0, "education", "-4", "-4", "0 to 40; give years"),
    (0, "mmse", "31", "31", "0 to 30"),
    (0, "amyloid_suvr", "-1.2", "-1.2", "0.2 to 10"),
    (0, "tau_suvr", "1,31", "'1,31'", "0.2 to 10; write decimals with a point"),
    (0, "amyloid_centiloid", "1000", "1000", "-150 to 400"),
    (0, "amyloid_days", "99999", "99999", "-7305 to 7305"),
    (0, "tau_days", "soon", "'soon'", "-7305 to 7305"),
    (0, "tau_status", "2", "2", "0 to 1"),
    (0, "tau_status", "0.5", "'0.5'", "0 to 1"),
    (0, "tau_status", "yes", "'yes'", "0 to 1"),
    (0, "space", "Talairach", "'Talairach'", "or nothing; write MNI152, or nothing"),
    (0, "split", "training", "'training'", "train, validation, test or nothing; correct the split"),
    (0, "person", "../x", "'../x'", "sub- and then letters and digits, as in BIDS; rename the person"),
    (0, "person", "0001", "'0001'", "sub- and then"),
    (0, "person", "sub-00 01", "'sub-00 01'", "sub- and then"),
    (0, "person", "", "nothing", "sub- and then"),
    (0, "session", "baseline", "'baseline'", "ses- and then"),
    (0, "amyloid_tracer", "", "nothing", "the tracer of 0_0_18FAV45.nii.gz"),
    (0, "amyloid_tracer", "AV 45", "'AV 45'", "letters and digits"),
    (0, "t1w", "", "nothing", "a path; give the path of the scan"),
    (0, "t1w", "nowhere.nii.gz", "nowhere.nii.gz", "a file; correct the path or leave the session out"),
    (0, "tau", "scans", "scans", "a file"),
]


@pytest.mark.parametrize(("row", "column", "value", "found", "expected"), CELLS)
def test_a_bad_cell_is_named(table, row, column, value, found, expected):
    path = table(row, column, value)
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    message = str(error.value)
    assert message.startswith(f"{path}: row {row + 2} (")
    assert f"), {column}: found " in message
    message, _, wanted = message.partition(", expected ")
    assert found in message
    assert expected in wanted


TABLES = {
    "column missing": (lambda text: text.replace("age", "years", 1), "missing age; rename or remove them"),
    "a slip in a name": (lambda text: text.replace("amyloid_tracer", "amyloid_tracr", 1), "mean 'amyloid_tracer'"),
    "a column twice": (lambda text: text.replace("education", "mmse", 1), "column 'mmse' twice"),
    "an unknown column": (lambda text: text.replace("education", "income", 1), "unknown column 'income'"),
    "semicolons": (lambda text: text.replace(",", ";"), "separated by semicolons or tabs; save the table with commas"),
    "tabs": (lambda text: text.replace(",", "\t"), "separated by semicolons or tabs"),
    "a cell too many": (lambda text: text.replace("16,28", "16,28,7", 1), "row 2: found 22 cells, expected 21"),
    "a cell too few": (lambda text: text.replace("16,28", "16", 1), "row 2: found 20 cells, expected 21"),
    "header only": (lambda text: text.splitlines()[0], "no session"),
    "empty": (lambda text: "", "empty; expected a header"),
    "blank lines only": (lambda text: "\n\n,,,\n", "empty"),
    "Latin-1": (lambda text: text.replace("CN", "Café", 1).encode("latin-1"), "not UTF-8 (byte 0xe9); save it as CSV"),
    "UTF-16": (lambda text: text.encode("utf-16"), "row 1: not UTF-8 (byte 0xff)"),
    "an open quote": (lambda text: text + '"sub-9999', "not CSV"),
    "a quote inside": (lambda text: text.replace("sub-0000", '"sub-"-"00"00', 1), "row 2: not"),
    "a session twice": (lambda text: text + text.splitlines()[1] + "\n", "this session twice; keep one row"),
    "no PET": (lambda text: _without_pets(text), "found nothing, expected at least one PET; leave the session out"),
}


def _without_pets(text: str) -> str:
    head, first, *rest = text.splitlines()
    cells = dict(zip(head.split(","), first.split(","), strict=True))
    cells |= dict.fromkeys(["amyloid", "tau", "amyloid_tracer", "tau_tracer"], "")
    return "\n".join([head, ",".join(cells.values()), *rest]) + "\n"


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_table_is_named(table, name):
    path, (change, message) = table(), TABLES[name]
    with pytest.raises(ManifestError) as error:
        read_manifest(table(text=change(path.read_text())))
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_names_that_differ_by_capitals_only(table):
    """A typing error makes one person two, of whom one may be tested and the other trained on."""
    table(0, "person", "sub-A")
    with pytest.raises(LeakageError, match=r"2 people whose names differ by capitals only: sub-A; sub-a\. Give one"):
        read_manifest(table(1, "person", "sub-a"))


EXPORTS = {
    "CRLF": lambda text: text.replace("\n", "\r\n"), "BOM": lambda text: "\ufeff" + text,
    "spaces around cells": lambda text: text.replace(",F,", ", F ,").replace("sub-0001", " sub-0001 "),
    "blank lines": lambda text: text + "\n\n", "n/a": lambda text: text.replace(",,", ",n/a,"),
}  # fmt: skip


@pytest.mark.parametrize("change", EXPORTS.values(), ids=EXPORTS)
def test_spreadsheet_exports_are_read(table, change):
    path = table()
    expected = read_manifest(path)
    pd.testing.assert_frame_equal(read_manifest(table(text=change(path.read_bytes().decode()))), expected)


# ── what is no file, and disks ────────────────────────────────────────────────────────────────────


def test_a_folder_or_links_in_a_circle_in_place_of_a_file(table, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ManifestError, match=r"folder\.csv: a folder; expected a table"):
        read_manifest(tmp_path / "folder.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "other.csv")
    (tmp_path / "other.csv").symlink_to(tmp_path / "link.csv")
    with pytest.raises(ManifestError, match=r"link\.csv: a link that leads nowhere"):
        read_manifest(tmp_path / "link.csv")
    path = table()
    scan = Path(read_manifest(path)["t1w"][0])
    scan.unlink()
    scan.symlink_to(scan)
    with pytest.raises(ManifestError, match=r"row 2 \(.*\), t1w: found .* expected a file; correct the path"):
        read_manifest(path)


def test_what_cannot_be_written_leaves_the_manifest_as_it_was(table, monkeypatch):
    path = table()
    before, frame = path.read_bytes(), read_manifest(path)
    for bad in ({"age": 5.0}, {"sex": "X"}, {"tau_status": 2}, {"person": "me"}):
        with pytest.raises((ManifestError, LeakageError)):
            write_manifest(frame.assign(**bad), path)
    (path.parent / "work").touch()  # a folder that cannot be written, also by root, whom permissions do not stop
    with pytest.raises(OSError, match="work"):
        write_manifest(frame, path.parent / "work" / "manifest.csv")
    (path.parent / "work").unlink()

    def full(self, *arguments, **options):
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(io.Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_manifest(frame.assign(age=50.0), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["manifest.csv"]
