"""The report's pages, of a profile that has made a little of everything, and of one that failed."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from base64 import b64decode, b64encode
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup
from crawl import broken_links, fetched_from_a_network
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from stored_cohort import make_config

from resdm.io import WriteError, write_json
from resdm_suite.apps import cli
from resdm_suite.records import write_record
from resdm_suite.reporting import site
from resdm_suite.reporting.glance import answers, comparisons

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
NOTICE = "phantom data: not a reproduction of the paper's numbers"
TABLE4 = "source,target,tracer,metric,n,mean,ci_low,ci_high,over_ResDM,over_ResDM_low,over_ResDM_high"


def notebook(path: Path, title: str, *outputs, seconds: float | None = 12.5, source: str | None = None, **parameters):
    run = {"input_path": f"notebooks/{source or path.stem}.ipynb", "parameters": parameters, "duration": seconds}
    cells = [
        new_markdown_cell(f"# {title}\n\nWhy $x$? See [the first part](#First-part)."),
        new_markdown_cell("## First part"),
        new_code_cell("draw()", outputs=list(outputs)),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"papermill": run}), path)


@pytest.fixture
def config(tmp_path):
    """Table 1 and Figure 2 drawn, one method trained, one notebook failed, one killed."""
    config = make_config(tmp_path)
    figures, executed = config.figures, config.work / "notebooks"
    figures.mkdir(parents=True)
    for suffix in ("csv", "tex", "json"):
        (figures / f"table1.{suffix}").write_text("a\n1\n")
    table = (
        f"## Table 1: Who ({NOTICE})\n\n| a | b |\n|---|--:|\n| <script>x</script> | 1 ± 2, p < 0.001 |\n\n- A note.\n"
    )
    (figures / "table1.md").write_text(table)
    (figures / "figure2.png").write_bytes(b64decode(PIXEL))
    (figures / "figure2.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (figures / "figure 9+.csv").write_text("name,value\n<b>,0.123456\n")
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "0%|bar|"}
    notebook(
        executed / "00_cohort.ipynb", "00 · Who is there?", new_output("display_data", {"image/png": PIXEL}),
        new_output("display_data", widget),
        new_output("display_data", {"text/markdown": "| a |\n|---|\n| <script>1 < 2</script> |"}),
    )  # fmt: skip
    notebook(executed / "02_train_+A b.ipynb", "02 · Train", source="02_train", method="+A b", seconds=100.0)
    error = new_output("error", ename="ValueError", evalue="3 < 4 <b>people</b>", traceback=["ValueError"])
    notebook(executed / "04_table2_comparison.ipynb", "04 · Which is best?", error)
    notebook(executed / "09_figure1_method.ipynb", "09 · What does it do?", seconds=None)
    config.model("ResDM").mkdir(parents=True)
    (config.model("ResDM") / "model.safetensors").touch()
    timing = {"parameters": 2_615_720, "steps": 1160, "seconds": 132.4, "seconds_per_step": 0.1141, "device": "cpu"}
    write_json(config.model("ResDM") / "timing.json", timing | {"peak_memory_bytes": 3 * 2**29})
    return config


def text(path: Path) -> str:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").get_text(" ", strip=True)


def test_every_file_and_notebook_is_linked_from_the_index(config):
    index = site.write_report(config)
    assert index == config.work / "report" / "index.html"
    tree = BeautifulSoup(index.read_text(), "html.parser")
    links = {tag["href"] for tag in tree.find_all("a")}
    names = {path.name for path in config.figures.iterdir()}
    assert {path.name for path in (index.parent / "files").iterdir()} == names
    assert {unquote(link.partition("/")[2]) for link in links if "files/" in link} == names
    assert len([link for link in links if link.startswith("notebooks/")]) == 4
    assert tree.find("img")["src"] == "files/figure2.png"
    assert tree.find("img").parent["href"] == "files/figure2.svg"
    assert tree.find("img")["alt"].startswith("Brain slices of the real amyloid and tau PET")
    assert [tree.find("img")[side] for side in ("width", "height")] == ["1", "1"]  # a jump below it lands right
    assert tree.find(id="00_cohort").get_text() == "Who is there?"
    cells = [cell.get_text(" ").replace("\xa0", " ") for cell in tree.find(id="table1").find_all("td")]
    assert cells == ["<script>x</script>", "1 ± 2, p < 0.001"]
    assert NOTICE not in tree.find(id="table1").get_text()  # once, at the head of the page
    assert NOTICE[1:] in tree.find("header").get_text()
    assert "<b>" in tree.find(id="figure 9+").get_text()  # a cell's text, no tag
    assert tree.find("meta", attrs={"name": "viewport"})


def test_pages_need_no_network_no_script_and_no_file_beside_them(config, tmp_path):
    moved = tmp_path / "else where"
    shutil.move(site.write_report(config).parent, moved)
    shutil.rmtree(config.work)
    assert broken_links(moved) == fetched_from_a_network(moved) == []
    assert not any("<script" in page.read_text() for page in moved.rglob("*.html"))


def test_crawling_finds_what_is_broken(tmp_path):
    """The two helpers above can fail."""
    (tmp_path / "a.html").write_text(
        "<a href='b.html'></a><a href='#no'></a><a href='../out.txt'></a><img src='https://x.org/p.png'>"
        "<script>import m from 'https://x.org/m.js'</script><a href='https://x.org'></a>"
        "<p id='yes'></p><a href='#yes'></a>"
    )
    (tmp_path.parent / "out.txt").touch()
    (tmp_path / "s.css").write_text("@import 'https://x.org/s.css'; p { background: url(//x.org/i.png) }")
    assert broken_links(tmp_path) == ["a.html: b.html", "a.html: #no", "a.html: ../out.txt"]
    assert len(fetched_from_a_network(tmp_path)) == 4


def test_notebooks_fold_their_code_and_drop_dead_widgets(config):
    folder = site.write_report(config).parent / "notebooks"
    tree = BeautifulSoup((folder / "00_cohort.html").read_text(), "html.parser")
    (folded,) = tree.find_all("details")
    assert "draw()" in folded.get_text()
    assert not folded.has_attr("open")
    assert tree.find("img")["src"].startswith("data:image/png")
    assert "0%|bar|" not in tree.get_text()
    assert "<script>1 < 2</script>" in tree.get_text()  # text of a table, no tag
    assert tree.find("nav").find_all("a")[0]["href"] == "../index.html"


def test_says_what_is_missing_and_what_failed(config):
    said = text(site.write_report(config))
    assert "04 · Which is best?: failed: ValueError: 3 < 4 <b>people</b>" in said
    assert "09 · What does it do?: not finished" in said
    assert "no manifest: work/tiny/manifest.csv" in said
    assert "ResDM: trained, but not synthesised" in said
    assert "table2, which notebook 04_table2_comparison makes" in said
    assert "table1, which" not in said
    assert "table3, which" not in said  # the profile has no variants
    (config.model("ResDM") / "model.safetensors").unlink()
    (config.model("ResDM") / "state.pt").touch()
    assert "ResDM: training not finished" in text(site.write_report(config))


def test_timings_are_those_of_the_records(config):
    records = config.root / ".snakemake" / "metadata"
    records.mkdir(parents=True)
    job = {"shellcmd": "resdm phantom tiny --jobs 2 2>&1 | tee log.txt", "starttime": 10.0, "endtime": 75.0}
    job["log"] = ["work/tiny/logs/phantom.txt"]
    foreign = job | {"shellcmd": "resdm tiny big", "log": ["work/big/logs/tiny.txt"]}  # a command of the profile's name
    others = foreign, job | {"shellcmd": "resdm report tiny"}, {"shellcmd": None}, {"shellcmd": "resdm"}
    for i, record in enumerate((job, *others)):
        (records / b64encode(bytes([i])).decode()).write_text(json.dumps(record))
    (records / "torn").write_text('{"shellcmd": "resdm ')
    tree = BeautifulSoup(site.write_report(config).read_text(), "html.parser")
    times, trainings = tree.find(id="timings").find_all_next("table")[:2]
    rows = [[cell.get_text() for cell in row.find_all("td")][:2] for row in times.find_all("tr")[1:]]
    assert rows == [
        ["resdm phantom tiny --jobs 2", "1 min 5 s"], ["00 · Who is there?", "12.5 s"],
        ["02 · Train · +A b", "1 min 40 s"], ["04 · Which is best?", "12.5 s"],
    ]  # fmt: skip
    widths = [tag["style"] for tag in times.find_all(class_="bar")]
    assert widths == ["width: 65.0%", "width: 12.5%", "width: 100.0%", "width: 12.5%"]
    assert "Together 3 min 10 s" in tree.get_text()
    row = [cell.get_text() for cell in trainings.find_all("td")]
    assert row == ["ResDM", "2.62 M", "1160", "2 min 12 s", "114.1", "1.50 GiB", "cpu"]
    assert site._duration(7384) == "2 h 3 min"


def test_quality_control_lies_beside_and_is_linked(config):
    index = site.write_report(config)
    assert "qc/index.html" not in index.read_text()
    (config.work / "qc").mkdir()
    (config.work / "qc" / "qc.csv").write_text("person,flags\nsub-1,\nsub-2,low similarity\n")
    (config.work / "qc" / "index.html").write_text("<p>montages</p>")
    assert "1 of 2 are flagged" in text(site.write_report(config))
    assert broken_links(index.parent, config.work) == []
    write_record(config.work / "qc", "resdm qc tiny", [config.work / "qc" / "qc.csv"])
    (config.work / "qc" / "qc.csv").write_text("person,flags\nsub-1,\nsub-2,\n")
    assert "are flagged" not in text(site.write_report(config))
    (config.work / "qc" / "qc.csv").unlink()
    assert "are flagged" not in text(site.write_report(config))
    assert broken_links(index.parent, config.work) == []


def test_damaged_files_are_named_and_the_rest_is_reported(config):
    executed = config.work / "notebooks"
    whole = (executed / "00_cohort.ipynb").read_text()
    for name, content in {"half": whole[:200], "empty": "", "list": "[]", "hollow": '{"cells": []}'}.items():
        (executed / f"{name}.ipynb").write_text(content)
    (executed / "folder.ipynb").mkdir()
    (config.figures / "table1.md").write_bytes(b"## Table 1\n\xff\xfe\n")
    (config.figures / "figure2.png").write_bytes(b"\x89PNG")
    (config.model("ResDM") / "timing.json").write_text("{")
    for place in (config.figures / "empty.csv", config.work / "qc" / "qc.csv", config.volumes / "index.csv"):
        place.parent.mkdir(exist_ok=True)
        place.write_text("")
    (config.work / "qc" / "index.html").write_text("<p>montages</p>")
    said = text(site.write_report(config))
    for name in ("half", "empty", "list", "hollow", "folder"):
        assert f"{name}: cannot be read; run it again" in said
    assert "empty.csv cannot be read; make it again" in said
    assert "Its table cannot be read" in said
    assert "Who is there?" in said


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("module", "name", "fault", "error", "message"), [
    (site, "_write_notebooks", lambda *_: 1 / 0, ZeroDivisionError, "zero"),
    (site.shutil, "copyfile", full, WriteError, r"report: cannot be written \(No space left on device\); free space"),
])  # fmt: skip
def test_written_anew_or_not_at_all(config, monkeypatch, module, name, fault, error, message):
    index = site.write_report(config)
    (index.parent / "old.html").touch()
    before = index.read_bytes()
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(error, match=message):
        site.write_report(config)
    monkeypatch.undo()
    assert index.read_bytes() == before
    site.write_report(config)
    assert not (index.parent / "old.html").exists()
    assert [path.name for path in config.work.iterdir() if "report" in path.name] == ["report"]


def test_real_people_come_with_a_warning(config):
    real = dataclasses.replace(config, cohort=dataclasses.replace(config.cohort, kind="adni"))
    said = text(site.write_report(real))
    assert "data-use agreement" in said
    assert "Phantom data" not in said
    assert "data-use agreement" not in text(site.write_report(config))


def stored_results(folder: Path) -> None:
    """Tables 2 and 4, effects of Figures 4 and 5, and the ledger, of one tracer."""

    def put(name: str, head: str, *lines: str) -> None:
        (folder / f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")

    rows = {"ResDM": ",,,", "linear": "-0.5,-1,-0.02,0.1", "template": "-3,-4,-2,0.001", "DDPM": "-4,-5,-3,0.0001"}
    rows |= {"Pix2Pix": "1.2,0.6,1.8,0.01"}
    lines = [f"{m},amyloid,brain,psnr,58,{28 + i},27,29,{r}" for i, (m, r) in enumerate(rows.items())]
    head = "method,tracer,region,metric,n,mean,ci_low,ci_high,difference,difference_low,difference_high,p"
    put("table2", head, *lines)
    over = {"ResDM": ",,", "linear": "-6,-12,0.1", "mri": "3,1,5"}
    put("table4", TABLE4, *(f"{m},planted,amyloid,auc_mean_score,58,80,70,90,{gain}" for m, gain in over.items()))
    head = "name,tracer,estimate,low,high"
    put("figure4_effects", head, "psnr_right_wrong,amyloid,2.2,1.3,3", "psnr_right_wrong,tau,1,-1,3")
    put("figure5_effects", head, "psnr_own_shuffled,amyloid,0.1,-1,1", "slope_sweep,amyloid,0.5,0,1")
    put("input_check", "fault,share,low,high", "none,0.02,0,0.09", "noise,1,0.9,1", "mirror,0.1,0,0.2")
    put("intervals", "tracer,measure,share,low,high", "tau,inside,1,1,1", "tau,undetermined,0.98,0.9,1")
    put("memorisation", "auc,auc_low,auc_high", "0.78,0.71,0.84")
    put("claims", "kind,status", "best,held", "best,did not hold", "words,not testable", "setting,held")


def test_the_head_of_the_page_answers_from_the_stored_results(config):
    stored_results(config.figures)
    tree = BeautifulSoup(site.write_report(config).read_text(), "html.parser")
    rows = tree.find(id="glance").find_next("table").find_all("tr")
    cells = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in rows]
    assert cells == [
        ["ResDM against", "image quality, Aβ-PET", "status, Aβ-PET"],
        ["ResDM itself", "28.0 [27.0, 29.0] dB", "80.0 [70.0, 90.0] %"],
        ["the linear model of MRI, age and sex", "no difference shown: 0.5 [0.0, 1.0] dB, p = 0.100",
         "no difference shown: 6.0 [−0.1, 12.0] points"],
        ["the mean PET of the training people", "better: 3.0 [2.0, 4.0] dB, p = 0.001", ""],
        ["the best other published method", "worse: −1.2 [−1.8, −0.6] dB, p = 0.010 (Pix2Pix)", ""],
        ["the MRI itself, without any PET", "", "worse: −3.0 [−5.0, −1.0] points"],
    ]  # fmt: skip
    said = tree.find(class_="answers").get_text(" ", strip=True)
    assert "In Aβ-PET only. With the wrong sex" in said
    assert "No effect shown. Another person's age costs 0.1 [−1.0, 1.0] dB (Aβ-PET)" in said
    assert "1 held and 1 did not hold. The others: 1 not testable." in said
    assert "2 gross faults were planted. Mostly missed: mirror. False alarms: 2 [0, 9] %." in said
    assert "undetermined for 98 [90, 100] % (tau-PET) of test people" in said
    assert "with an AUC of 0.78 [0.71, 0.84]" in said
    assert "results or notebooks are missing or failed" in said


def test_a_status_that_all_test_people_share_has_no_comparison(config):
    lines = [f"{name},label,amyloid,auc_mean_score,9,,,,,," for name in ("ResDM", "Pix2Pix", "DDPM", "mri")]
    (config.figures / "table4.csv").write_text("\n".join([TABLE4, *lines]) + "\n")
    (name, cells), *others = comparisons(config)["rows"]
    assert (name, [cell.text for cell in cells], others) == ("ResDM itself", ["– %"], [])


def test_the_head_of_the_page_says_nothing_from_other_runs(config):
    stored_results(config.figures)
    for stem in ("table2", "table4", "figure4", "figure5", "claims", "input_check", "intervals", "memorisation"):
        write_json(config.figures / f"{stem}.json", {"settings": {"seed": "of another run"}, "inputs": {}})
    tree = BeautifulSoup(site.write_report(config).read_text(), "html.parser")
    assert tree.find(id="glance").find_next("div").find("table") is None
    assert [tag.get_text() for tag in tree.find_all("dt")][-2:] == ["Is this run complete?", "How long did it take?"]


@pytest.mark.parametrize("content", [
    "a,b\n1,2\n", "method,tracer,region,metric\nResDM,tau,brain,psnr\n",
    "name,tracer,estimate,low,high\npsnr_right_wrong,tau,a,b,c\npsnr_own_shuffled,tau,a,b,c\n",
])  # fmt: skip
def test_tables_written_by_hand_give_no_answer(config, content):
    stored_results(config.figures)
    for path in config.figures.glob("*.csv"):
        path.write_text(content)
    assert comparisons(config)["columns"] == comparisons(config)["rows"] == answers(config) == []


def test_nothing_made_is_an_error_with_its_remedy(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("cohort: {kind: phantom, phantom: {people: 12}}\n")
    assert cli.main(["report", str(path)]) == 2
    assert "nothing there to report; make reproduce PROFILE=mine" in capsys.readouterr().err
