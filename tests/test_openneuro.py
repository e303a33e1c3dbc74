"""DLBS: the sessions of the real metadata, notes on faults, and the download from a local server."""

from __future__ import annotations

import errno
import gzip
import shutil
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
import pandas as pd
import pytest
from conftest import flow
from mock_sources import write_dlbs

from resdm_suite.cohorts.assembly import make_manifest
from resdm_suite.cohorts.manifest import ManifestError
from resdm_suite.cohorts.readers import download as transfer
from resdm_suite.cohorts.readers.download import DownloadError, Remote, fetch, list_bucket
from resdm_suite.cohorts.readers.openneuro import FILES, build_manifest, download, not_downloaded
from resdm_suite.profiles import CohortConfig, Config, MatchConfig, load_config


def make_config(root: Path, **match) -> Config:
    match = MatchConfig(**{"window_days": 366.0, "same_visit": True} | match)
    return Config(profile="dlbs", cohort=CohortConfig(kind="dlbs", source="openneuro", match=match), root=root)


@pytest.fixture(scope="module")
def mock(tmp_path_factory):
    """A mock download; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("mock") / "ds004856"
    return write_dlbs(folder, heads=False)


# ── the real metadata ─────────────────────────────────────────────────────────────────────────────

REAL_FLOW = {
    "found": (464, 969), "has T1": (464, 957), "has amyloid": (295, 542), "has tau": (154, 181),
    "has amyloid and tau": (105, 123), "amyloid and tau in window": (49, 51),
}  # fmt: skip


def test_the_real_metadata(real_dlbs, tmp_path):
    """From the listing alone: 464 people, 123 triplets of 105 people, 51 of them within one year by ages."""
    found = build_manifest(real_dlbs, make_config(tmp_path, require="both"))
    assert flow(found.flow) == REAL_FLOW | dict.fromkeys(("in window", "has age and sex", "kept"), (49, 51))
    assert found.left_out["reason"].value_counts().to_dict() == {
        "no amyloid and tau PET": 834, "PET more than 366 days from the T1": 72, "no T1": 12,
    }  # fmt: skip
    assert found.notes[0].startswith("123 waves of 105 people have T1w, amyloid and tau PET; in 51 of them (49 people)")
    days = found.manifest[["amyloid_days", "tau_days"]].value_counts().to_dict()
    assert days == {(0.0, 365.25): 31, (0.0, 0.0): 12, (365.25, 365.25): 8}
    absent, size = not_downloaded(found.manifest, real_dlbs)
    assert (len(absent), size) == (153, 672814076)

    wide = build_manifest(real_dlbs, make_config(tmp_path, require="both", window_days=1461.0))
    assert (len(wide.manifest), wide.manifest["person"].nunique()) == (123, 105)
    assert round(not_downloaded(wide.manifest, real_dlbs)[1] / 1e9, 2) == 1.57


def test_the_profile_on_the_real_metadata(real_dlbs):
    config = load_config("dlbs")
    found = build_manifest(real_dlbs, config)
    frame = found.manifest
    steps = dict.fromkeys(("in window", "has age and sex", "kept"), (293, 536))
    assert flow(found.flow) == REAL_FLOW | {"has amyloid or tau": (331, 600)} | steps
    assert (len(frame), frame["person"].nunique()) == (536, 293)
    assert ((frame["amyloid"] != "").sum(), (frame["tau"] != "").sum()) == (536, 51)
    assert frame["sex"].value_counts().to_dict() == {"F": 324, "M": 212}
    assert frame["t1w"].str.contains("run-2").sum() == 4  # of ten waves, the others have no PET in the window
    assert frame["age"].between(30, 97).all()
    assert frame["diagnosis"].eq("").all()
    with pytest.raises(ManifestError, match=r"no participants\.tsv; `resdm manifest openneuro dlbs --download`"):
        build_manifest(real_dlbs / "json_examples", config)


# ── a mock of it ──────────────────────────────────────────────────────────────────────────────────


def test_who_is_in_the_mock_and_who_is_not(mock, tmp_path):
    found = build_manifest(mock.root, make_config(tmp_path))
    mock.check(found)
    first = found.manifest.set_index(["person", "session"]).loc[("sub-9002", "ses-wave2")]
    assert first[["age", "sex", "education", "mmse"]].tolist() == [62.0, "F", 14.0, 28.0]
    assert first[["amyloid_days", "tau_days", "tau_tracer"]].tolist() == [0.0, 365.25, "18FAV1451"]
    assert found.manifest.set_index("person").loc["sub-9009", "t1w"].endswith("run-2_T1w.nii.gz")
    notes = "\n".join(found.notes)
    assert "sidecars of 8 of 32 PETs: Radiopharmaceutical '[18F]Florbetaben' is not 18FAV1451" in notes


@pytest.fixture
def listed(mock, tmp_path):
    """A folder with the table of participants and the list of files, before any download of scans."""
    folder = tmp_path / "d"
    folder.mkdir()
    shutil.copy(mock.root / "participants.tsv", folder)
    paths = sorted(path.relative_to(mock.root).as_posix() for path in mock.root.glob("sub-*/*/*/*.nii.gz"))
    (folder / FILES).write_text("path\tbytes\n" + "\n".join(f"{path}\t1000000" for path in paths))
    return folder


@pytest.mark.parametrize(("person", "column", "value", "message"), [
    (0, "MRIW1toW2", "5.5", "5.5 years from wave 1 to 2"),  # ages 4 years apart
    (1, "PETAmyW1toW2", "3.9", "but no age at one of the two waves"),
    (0, "AgePETTau_W2", "n/a", "sub-9000 ses-wave2: no age at the tau PET; taken to be in the window, as of the same"),
    (0, "AgeMRI_W1", "xx", "no age, or no sex"),  # the code of other tables for people who did not come
    (0, "AgeMRI_W1", "5O", "age: found '5O', expected a number from 18 to 110"),
    (0, "Sex", "w", "sex: found 'w', expected F, M"),
])  # fmt: skip
def test_impossible_ages_and_intervals(listed, tmp_path, person, column, value, message):
    path = listed / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table.loc[person, column] = value
    table.to_csv(path, sep="\t", index=False)
    found = build_manifest(listed, make_config(tmp_path))
    left_out = found.left_out.loc[found.left_out["person"] == "sub-9000", "reason"]
    assert any(message in line for line in [*found.notes, *left_out])


def test_another_data_set_is_refused(listed, tmp_path):
    (listed / "participants.tsv").write_text("participant_id\tage\tsex\nsub-1\t70\tF\n")
    with pytest.raises(ManifestError, match=r"no column agemri_w1, .* for another data set than ds004856 use"):
        build_manifest(listed, make_config(tmp_path))


def test_without_scans_the_error_names_the_download_command(listed, tmp_path):
    config = make_config(tmp_path)
    with pytest.raises(ManifestError, match=r"49 of 49 scans of 0\.05 GB are missing .*--download"):
        make_manifest(config, listed)
    (listed / FILES).unlink()
    with pytest.raises(ManifestError, match=r"no T1w and no PET.*`resdm manifest openneuro dlbs --download`"):
        make_manifest(config, listed)
    pet = listed / "sub-9000" / "ses-wave1" / "pet" / "sub-9000_ses-wave1_trc-18FFDG_run-1_pet.nii.gz"
    pet.parent.mkdir(parents=True)
    pet.touch()
    with pytest.raises(ManifestError, match="no session can be used: of 1 found, 0 have a T1w"):
        make_manifest(config, listed)
    assert not config.manifest.exists()
    assert (config.work / "flow.csv").read_text().startswith("step,people,sessions\nfound,14,25\n")


# ── the download ──────────────────────────────────────────────────────────────────────────────────


class Bucket(BaseHTTPRequestHandler):
    """A folder as S3 serves it, in pages of 20, with the faults that ``faults`` asks for: name → one a request."""

    def do_GET(self):
        server, url = self.server, urlparse(self.path)
        if url.path == "/":
            self.list(parse_qs(url.query))
            return
        key = unquote(url.path).lstrip("/")
        name = key.rsplit("/")[-1]
        server.asked[name] += 1
        server.ranges.append((name, self.headers.get("Range")))
        with server.lock:
            server.open += 1
            server.most = max(server.most, server.open)
        with suppress(ConnectionError):
            self.send(name, server.root / key)
        with server.lock:
            server.open -= 1

    def send(self, name, path):
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        data = path.read_bytes() if fault != "other" else b"x" * path.stat().st_size
        data += b"more" * (fault == "longer")
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if fault != "no range" else 0
        if start and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        rest = data[start:]
        self.wfile.write(rest[: len(rest) // 2] if fault == "cut" else rest)

    def list(self, query):
        keys = sorted(p.relative_to(self.server.root).as_posix() for p in self.server.root.rglob("*") if p.is_file())
        keys = [key for key in keys if key.startswith(query["prefix"][0])]
        start = int(query.get("continuation-token", ["0"])[0])
        after = start + 20
        sizes = {key: (self.server.root / key).stat().st_size for key in keys[start:after]}
        entries = [f"<Contents><Key>{key}</Key><Size>{size}</Size></Contents>" for key, size in sizes.items()]
        entries += [f"<NextContinuationToken>{after}</NextContinuationToken>"] if after < len(keys) else []
        entries += [f"<IsTruncated>{str(after < len(keys)).lower()}</IsTruncated>"]
        head = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        text = f"{head}{''.join(entries)}</ListBucketResult>".encode()
        if self.server.html:
            text = b"<html><body>Sign in to the hotel</body></html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """``bucket(folder)`` serves it; the server has ``url``, ``asked``, ``ranges``, ``faults`` and ``most``."""
    monkeypatch.setattr(transfer, "DELAYS", (0.01, 0.01))
    servers = []

    def serve(root):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
        server.root, server.faults, server.html = root, {}, False
        server.asked, server.ranges, server.lock, server.open, server.most = Counter(), [], threading.Lock(), 0, 0
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def small(tmp_path, bucket):
    """A server with one gzip file and one other; ``small.files(folder)`` lists them."""
    rng = np.random.default_rng(0)
    root = tmp_path / "served"
    (root / "d").mkdir(parents=True)
    (root / "d" / "a.nii.gz").write_bytes(gzip.compress(rng.bytes(600_000)))
    (root / "d" / "b.json").write_bytes(b"{}" * 50_000)
    server = bucket(root)
    server.files = lambda folder: [
        Remote(f"{server.url}/d/{path.name}", folder / path.name, path.stat().st_size)
        for path in sorted((root / "d").iterdir())
    ]
    server.same = lambda folder: all((folder / p.name).read_bytes() == p.read_bytes() for p in (root / "d").iterdir())
    return server


def test_the_download_brings_what_the_manifest_needs_and_no_more(mock, bucket, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(mock.root, served / "ds004856")
    bold = served / "ds004856" / "sub-9000" / "ses-wave1" / "func" / "sub-9000_ses-wave1_task-rest_bold.nii.gz"
    bold.parent.mkdir()
    bold.write_bytes(b"large")
    server, config = bucket(served), make_config(tmp_path)
    root = tmp_path / "d"
    n = download(config, root, url=server.url + "/", jobs=3, progress=False)
    found = build_manifest(root, config)
    mock.check(found)
    scans = sorted(root.rglob("*.nii.gz"))
    assert {*map(str, scans)} == {*found.manifest[["t1w", "amyloid", "tau"]].to_numpy().ravel()} - {""}
    assert len(scans) == 21 + 28
    assert n == 49 + 28 + 2  # a sidecar for each PET, two documents
    assert not any("func" in str(path) or path.suffix == ".part" for path in root.rglob("*"))
    assert server.most <= 4  # three at a time; the server counts one down after its client has the last byte
    make_manifest(config, root)
    assert download(config, root, url=server.url, progress=False) == 0  # nothing to do
    scans[0].write_bytes(b"broken")
    with pytest.raises(ManifestError, match=r"1 of 49 scans .* are missing or incomplete"):
        make_manifest(config, root)
    assert download(config, root, url=server.url, progress=False) == 1
    make_manifest(config, root)


def test_a_stopped_download_resumes(small, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.nii.gz.part").write_bytes((small.root / "d" / "a.nii.gz").read_bytes()[:123_456])
    assert fetch(small.files(folder), progress=False) == 2
    assert {("a.nii.gz", "bytes=123456-"), ("b.json", None)} <= set(small.ranges)
    assert small.same(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a.nii.gz", "b.json"]


def test_an_empty_file_is_downloaded(small, tmp_path):
    (small.root / "d" / "CHANGES").touch()
    assert fetch(small.files(tmp_path / "d"), progress=False) == 3
    assert small.same(tmp_path / "d")


@pytest.mark.parametrize(("faults", "part"), [
    (["cut"], 0), (["cut"] * 4, 0), ([500], 0), ([503, "cut", 500], 0), ([429], 0), (["other"], 0), (["longer"], 0),
    ([], 1000), (["no range"], 1000), ([], 10**6),  # other bytes: found out at the end, no ranges, too many of them
])  # fmt: skip
def test_a_failed_request_is_repeated(small, tmp_path, faults, part):
    files, small.faults["a.nii.gz"] = small.files(tmp_path / "d"), list(faults)
    if part:
        files[0].part.parent.mkdir()
        files[0].part.write_bytes(b"y" * part)
    fetch(files, progress=False)
    assert small.same(tmp_path / "d")
    assert part or small.asked == {"a.nii.gz": len(faults) + 1, "b.json": 1}


@pytest.mark.parametrize(("faults", "message"), [
    (["other"] * 9, "a.nii.gz: not a whole gzip file .*3 times in a row; run the same command again"),
    (["longer"] * 9, r"a.nii.gz: found \d+ bytes, expected \d+, 3 times in a row"),
    ([500] * 9, "a.nii.gz: 500 Internal Server Error, 3 times in a row"),
    ([404], r"a.nii.gz: the server refuses \(404 Not Found\); is the address right"),
])  # fmt: skip
def test_failed_files_are_named_and_the_others_are_complete(small, tmp_path, faults, message):
    small.faults["a.nii.gz"] = faults
    with pytest.raises(DownloadError, match=message):
        fetch(small.files(tmp_path / "d"), jobs=1, progress=False)
    assert not (tmp_path / "d" / "a.nii.gz").exists()
    assert (tmp_path / "d" / "b.json").read_bytes() == (small.root / "d" / "b.json").read_bytes()


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "DELAYS", (0.01,))
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/.*2 times in a row; is there a connection .*HTTPS_PROXY"):
        download(make_config(tmp_path), tmp_path / "d", url="http://127.0.0.1:9", progress=False)


def test_a_login_page_or_another_bucket_is_named(small, tmp_path):
    with pytest.raises(DownloadError, match=r"lists no ds004856/participants\.tsv among 0 files"):
        download(make_config(tmp_path), tmp_path / "d", url=small.url, progress=False)
    small.html = True
    with pytest.raises(DownloadError, match=r"expected S3's list of files, found something else .*login page"):
        list_bucket(small.url, "d/", progress=False)


def test_a_file_that_became_shorter_and_a_full_disk(small, tmp_path, monkeypatch):
    (url, path, size), _ = small.files(tmp_path / "d")
    with pytest.raises(DownloadError, match=f"found {size} bytes, expected {size + 10}, 3 times in a row"):
        fetch([Remote(url, path, size + 10)], progress=False)
    usage, asked = shutil.disk_usage(tmp_path), dict(small.asked)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    message = r"2 files of 0\.00 GB are to be downloaded, 0\.00 GB are free; free disk space"
    with pytest.raises(DownloadError, match=message):
        fetch(small.files(tmp_path / "e"), progress=False)
    assert small.asked == asked
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_stream", full)  # a disk that fills up is not tried again
    with pytest.raises(DownloadError, match=r"cannot be written: .*No space left on device; free disk space"):
        fetch(small.files(tmp_path / "d"), progress=False)


def test_other_errors_of_the_manifest_come_first(mock, bucket, tmp_path):
    """Nobody in the window: raised before a scan is downloaded."""
    served = tmp_path / "served"
    shutil.copytree(mock.root, served / "ds004856", ignore=shutil.ignore_patterns("*AV45*", "*AV1451*"))
    server = bucket(served)
    with pytest.raises(ManifestError, match="no session can be used"):
        download(make_config(tmp_path), tmp_path / "d", url=server.url, progress=False)
    assert not any(name.endswith(".nii.gz") for name in server.asked)
