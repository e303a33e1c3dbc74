"""No participant data are tracked: no identifier, no participant-level table, no image. A scanner checks it.

ADNI's terms exclude rows, lists of identifiers and scores of single participants, also in outputs of notebooks and in
metadata of figures. The scanner reads all tracked files. Identifiers of sites 000 and 999, which ADNI does not have,
are invented.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT, git_files, run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from resdm_suite.profiles import load_config

IDENTIFIERS = {
    "an ADNI PTID": (r"_S_\d", r"(?<![0-9A-Za-z])(?!000|999)\d{3}_S_\d{4,5}(?![0-9])"),
    "a PTID without its bars": (r"S\d{4}", r"(?<![0-9A-Za-z])(?!000|999)\d{3}S\d{4,5}(?![0-9A-Za-z])"),
    "a BIDS label of ADNI": (r"sub-ADNI", r"sub-ADNI(?!000|999)\d{3}S?\d*"),
    "a LONI image": (r"I\d{6}", r"(?<![0-9A-Za-z])I(?!000|999)\d{6,}(?![0-9A-Za-z])"),
    "an RID": (r"RID", r"(?<![A-Za-z])RID[\"']?\s*[:=]\s*[\"']?0*[1-9]\d*"),
}
"""Identifiers of participants and scans of ADNI: a short part for a quick search, then the whole pattern."""

BIDS_LABEL = r"(?<![0-9A-Za-z])sub-[0-9A-Za-z]+"
"""The label of any participant. It is searched in results: below ``figures/``, in outputs of notebooks, in metadata.
Figures of phantom profiles may name the phantom that they show."""

KEYS = {
    "person", "persons", "participant", "participant_id", "participantid", "subject", "subject_id", "subjectid", "sub",
    "rid", "ptid", "patient", "patient_id", "loniuid", "image_id", "imageuid",
}  # fmt: skip
"""Columns of participant-level tables."""

INVENTED = {"data_manifests/template.csv"}
"""Tables of invented people."""

OPAQUE = (".nii", ".nii.gz", ".npy", ".npz", ".mgz", ".dcm", ".mat", ".xlsx", ".parquet", ".pkl", ".h5", ".zip", ".gz")
"""Images, and tables that cannot be read here."""


def offences(root: Path) -> list[str]:
    """Files of a checkout with participant data, and the kind of data, but never the data."""
    kinds = {name: dict.fromkeys(_offences(name, root / name)) for name in git_files(root)}
    for name, listed in kinds.items():
        if _of_phantoms(root, name):
            listed.pop("a person's label", None)
    return [f"{name}: {kind}" for name, listed in kinds.items() for kind in listed]


def _of_phantoms(root: Path, name: str) -> bool:
    """Whether a file is a figure of a profile whose people are phantoms."""
    folder, _, rest = name.partition("/")
    profile = root / "configs" / f"{rest.partition('/')[0]}.yaml"
    return folder == "figures" and profile.is_file() and load_config(profile).cohort.kind == "phantom"


def _offences(name: str, path: Path) -> Iterator[str]:
    if name.lower().endswith(OPAQUE):
        yield "an image, or a table that cannot be looked into"
        return
    yield from _identifiers(name)
    data = path.read_bytes()
    if data.startswith(b"\x89PNG"):
        yield from _results(_png_text(data))
        return
    text = data.decode("utf-8", errors="replace")
    if name.endswith(".svg"):
        for picture in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", text):
            yield from _results(_png_text(base64.b64decode(picture)))
        text = re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", text)
    if name.endswith(".ipynb"):
        for cell in json.loads(text)["cells"]:
            yield from _results(json.dumps(cell.get("outputs", [])))
    yield from (_results if name.startswith("figures/") else _identifiers)(text)
    if name not in INVENTED:
        yield from _tables(name, text)


def _identifiers(text: str) -> Iterator[str]:
    for message, (part, whole) in IDENTIFIERS.items():
        if re.search(part, text) and re.search(whole, text):
            yield message


def _results(text: str) -> Iterator[str]:
    yield from _identifiers(text)
    if re.search(BIDS_LABEL, text):
        yield "a person's label"
    if {cell.lower() for cell in re.findall(r"<th>([^<]*)<", text)} & KEYS:
        yield "a table of participants"


def _tables(name: str, text: str) -> Iterator[str]:
    """Tables by their heads: CSV and TSV, and those of Markdown and LaTeX."""
    heads = []
    if name.endswith((".csv", ".tsv", ".txt")) and text.strip():
        first = text.lstrip("\ufeff").splitlines()[0]
        heads = [row for separator in ",;\t" for row in csv.reader(io.StringIO(first), delimiter=separator)]
    if name.startswith("figures/"):
        heads += [line.strip(" |\\").split("|") for line in text.splitlines() if line.startswith("|")]
        heads += [line.strip(" \\").split("&") for line in text.splitlines() if "&" in line]
    if any({cell.strip().lower() for cell in head} & KEYS for head in heads):
        yield "a table of participants"


def _png_text(data: bytes) -> str:
    """Text of a PNG: text, compressed text and EXIF chunks."""
    picture = Image.open(io.BytesIO(data))
    picture.load()  # chunks may stand behind the picture
    return "\n".join(map(str, [*picture.text.items(), *picture.getexif().items()]))


def test_nothing_of_a_participant_is_tracked():
    assert offences(ROOT) == []


# ── the scanner finds what is planted ─────────────────────────────────────────────────────────────

PTID = "_S_".join(("027", "0074"))  # written so that this file is clean
BARE = "S".join(("027", "0074"))
LONI = "I" + "1119527"


def png(text: str, kind: str = "text", **options) -> bytes:
    """A picture with a text in its metadata."""
    info, buffer = PngInfo(), io.BytesIO()
    getattr(info, f"add_{kind}")("Title", text, **options)
    Image.new("L", (1, 1)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def notebook(output: dict, **metadata) -> str:
    cell = {"cell_type": "code", "source": [], "metadata": metadata, "outputs": [output], "execution_count": 1}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


SVG = "<svg><metadata>{}</metadata></svg>"
PLANTED = {
    "README.md": (f"for example {PTID}", "an ADNI PTID"),
    "notes.txt": (f"see {BARE}.nii", "a PTID without its bars"),
    "code.py": (f'WHO = "sub-ADNI{BARE}"', "a BIDS label of ADNI"),
    "tree.md": (f"ADNI/x/{LONI}/y.dcm", "a LONI image"),
    "log.json": (json.dumps(dict.fromkeys(["RID"], 74)), "an RID"),
    f"scans/{PTID}.txt": ("x", "an ADNI PTID"),
    "latin.csv": (f"a,b\n{PTID},é\n".encode("latin-1"), "an ADNI PTID"),
    "figures/adni/table2.csv": ("person,psnr\nx1,20.1\n", "a table of participants"),
    "anywhere/scores.csv": ("RID,psnr\n74,20.1\n", "a table of participants"),
    "anywhere/scores.tsv": ("\ufeffParticipant_ID\tpsnr\nx\t20.1\n", "a table of participants"),
    "semicolons.csv": ("subject;psnr\nx;20\n", "a table of participants"),
    "figures/adni/table2.md": ("| Person | PSNR |\n|---|--:|\n| x1 | 20 |\n", "a table of participants"),
    "figures/adni/table2.tex": ("person & PSNR \\\\\n", "a table of participants"),
    "figures/dlbs/table2.json": ('{"who": "sub-1004"}', "a person's label"),
    "figures/adni/figure2.svg": (SVG.format("sub-0001"), "a person's label"),
    "figures/adni/inner.svg": (
        f'<image href="data:image/png;base64,{base64.b64encode(png(PTID)).decode()}"/>', "an ADNI PTID",
    ),
    "plain.png": (png(PTID), "an ADNI PTID"),
    "packed.png": (png("sub-0007", zip=True), "a person's label"),
    "utf8.png": (png(PTID, "itxt", lang="en"), "an ADNI PTID"),
    "utf8_packed.png": (png(LONI, "itxt", zip=True), "a LONI image"),
    "notebooks/out.ipynb": (
        notebook({"output_type": "stream", "name": "stdout", "text": ["worst: sub-0007\n"]}), "a person's label",
    ),
    "notebooks/html.ipynb": (
        notebook({"output_type": "execute_result", "metadata": {}, "data": {"text/html": "<th>person</th><td>7</td>"}}),
        "a table of participants",
    ),
    "notebooks/metadata.ipynb": (notebook({}, who=PTID), "an ADNI PTID"),
    "scan.nii.gz": (b"\x1f\x8b", "an image, or a table that cannot be looked into"),
    "people.xlsx": (b"PK", "an image, or a table that cannot be looked into"),
}  # fmt: skip

CLEAN = {
    "README.md": "PTIDs look like 999_S_0001, BIDS calls them sub-ADNI999S0001; RID is a number.",
    "data_manifests/template.csv": "person,session\nsub-0001,ses-1\n",
    "figures/phantom/table2.csv": "method,mean,n\nResDM,20.1,58\n",
    "figures/phantom/table2.md": "| Method | PSNR |\n|---|--:|\n| ResDM | 20 |\n",
    "figures/phantom/figure2.svg": SVG.format("sub-0132"),
    "configs/phantom.yaml": "profile: phantom\ncohort: { kind: phantom, phantom: {} }\n",
    "figures/phantom/figure2.png": png("resdm"),
    "notebooks/a.ipynb": notebook({"output_type": "stream", "name": "stdout", "text": ["58 people\n"]}),
    "code.py": 'LABEL = "sub-0001"  # a phantom',
}


def checkout(folder: Path, files: dict) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (["init", "-q"], ["add", "-A", "-f"]):
        run("git", *command, cwd=folder)
    return folder


def test_every_planted_offender_is_found(tmp_path):
    found = offences(checkout(tmp_path, {name: content for name, (content, _) in PLANTED.items()}))
    for name, (_, message) in PLANTED.items():
        assert f"{name}: {message}" in found
    assert {line.partition(": ")[0] for line in found} == set(PLANTED)
    assert not any(PTID in line.partition(": ")[2] for line in found)


def test_what_is_harmless_passes(tmp_path):
    (tmp_path / "untracked.csv").write_text("person\nx\n")
    checkout(tmp_path, CLEAN | {".gitignore": "untracked.csv\n"})
    run("git", "rm", "-q", "--cached", "untracked.csv", cwd=tmp_path)
    assert offences(tmp_path) == []
