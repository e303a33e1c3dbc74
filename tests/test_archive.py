"""The archive of a run: what it holds, how it describes that, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import zipfile

import pytest
from conftest import changed
from stored_cohort import make_cohort
from tiny_methods import make_config

from resdm.settings import ConfigError
from resdm_suite.apps.archive import archive
from resdm_suite.records import RecordError
from resdm_suite.reporting.provenance import provenance, write_sidecar


@pytest.fixture
def run(tmp_path):
    """A finished run of two results, the second made of the first; a notebook; and files that belong to no result."""

    def make(kind, **changes):
        config = changed(make_config(tmp_path, kind=kind), cohort=changes)
        files = {config.work / "scores.csv": "person\nsub-1\n", config.work / "notebooks" / "04.ipynb": "{}"}
        files |= {config.figures / name: name for name in ("table2.csv", "table2_rows.csv", "claims.md", "sub-1.png")}
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        write_sidecar(config.figures / "table2", provenance(config, [config.work / "scores.csv"]))
        write_sidecar(config.figures / "claims", provenance(config, [config.figures / "table2.csv"]))
        return config

    return make


def read(path):
    with zipfile.ZipFile(path) as crate:
        contents = {name: crate.read(name) for name in crate.namelist()}
    metadata = json.loads(contents.pop("ro-crate-metadata.json"))
    return contents, {entity["@id"]: entity for entity in metadata["@graph"]}, metadata


def test_the_archive_describes_every_file_and_what_made_it(run):
    config = run("phantom")
    contents, graph, metadata = read(archive(config))
    figures, work = f"figures/{config.profile}", f"work/{config.profile}"
    made = {"table2.csv", "table2_rows.csv", "table2.json", "claims.md", "claims.json"}
    results = {f"{figures}/{name}" for name in made}
    assert {*contents} == results | {f"configs/{config.profile}.yaml", f"{work}/notebooks/04.ipynb"}
    assert len(graph) == len(metadata["@graph"])
    assert metadata["@context"][0] == graph["ro-crate-metadata.json"]["conformsTo"]["@id"] + "/context"
    assert [one["@id"] for one in graph["./"]["hasPart"]] == [*contents]
    for name, content in contents.items():
        entity = graph[name]
        assert (entity["@type"], entity["contentSize"]) == ("File", str(len(content)))
        assert entity["sha256"] == hashlib.sha256(content).hexdigest()
    table, claims = graph["#make-table2"], graph["#make-claims"]
    ends = (".csv", ".json", "_rows.csv")
    assert [one["@id"] for one in table["result"]] == [f"{figures}/table2{end}" for end in ends]
    assert [one["@id"] for one in table["object"]] == [f"#{work}/scores.csv"]
    assert [one["@id"] for one in claims["object"]] == [f"{figures}/table2.csv"]
    scores = hashlib.sha256((config.work / "scores.csv").read_bytes()).hexdigest()
    assert graph[f"#{work}/scores.csv"]["sha256"] == scores
    linked = [v["@id"] for entity in graph.values() for value in entity.values()
              for v in (value if isinstance(value, list) else [value]) if isinstance(v, dict)]  # fmt: skip
    assert {one for one in linked if not one.startswith("https:")} <= {*graph}
    assert "not a reproduction" in graph["./"]["description"]


def test_of_a_real_cohort_it_holds_no_notebook_and_no_path_of_this_machine(run, tmp_path):
    config = changed(run("other", folder=str(tmp_path)), fidelity={"atlas": str(tmp_path)})
    out = archive(config, tmp_path / "out" / "crate.zip")
    contents, graph, _ = read(out)
    assert not [name for name in contents if name.endswith(".ipynb")]
    assert not [name for name, content in contents.items() if str(tmp_path).encode() in content]
    assert "MIT" not in graph["#terms"]["name"]


def test_results_that_are_not_of_this_run_are_refused(run):
    config = run("phantom")
    (config.work / "scores.csv").write_text("person\nsub-2\n")
    with pytest.raises(RecordError, match=r"table2.json: made of another work/.*\nrun `make reproduce"):
        archive(config)
    for path in config.figures.glob("*.json"):
        path.unlink()
    with pytest.raises(RecordError, match="no results; run `make reproduce"):
        archive(config)


def test_a_result_of_a_target_of_its_own_that_is_not_of_this_run_is_left_out(run):
    config = run("phantom")
    for path in (config.figures / "stress.csv", config.work / "model"):
        path.write_text("of another machine")
    write_sidecar(config.figures / "stress", provenance(config, [config.work / "scores.csv", config.work / "model"]))
    (config.work / "model").write_text("of this machine")
    with pytest.warns(UserWarning, match=r"stress\.json: .*; left out$"):
        contents, *_ = read(archive(config))
    assert not [name for name in contents if "stress" in name]
    assert f"figures/{config.profile}/table2.csv" in contents


def test_for_reading_it_holds_what_notebooks_read_of_phantoms_alone(tmp_path):
    config, index = make_cohort(tmp_path, {"ResDM": 0.5})
    (tmp_path / "notebooks").mkdir()
    for name in ("04_table2.ipynb", "16_walkthrough.ipynb"):
        (tmp_path / "notebooks" / name).write_text("{}")
    more = ("models/ResDM/timing.json", "models/ResDM/model.json", "predictions/ResDM/samples/mean.json")
    for name in (*more, "evaluation/.status.record.json", "bids/scan.json", "left_out.csv", "evaluation/.7.status.csv"):
        (config.work / name).parent.mkdir(parents=True, exist_ok=True)
        (config.work / name).write_text("{}")
    config.figures.mkdir(parents=True)
    for name in ("table2.csv", "table2.png"):
        (config.figures / name).write_text(name)
    write_sidecar(config.figures / "table2", provenance(config, [config.volumes / "index.csv"]))
    contents, graph, _ = read(archive(config, for_reading=True))
    assert {name for name in contents if not name.startswith("work/")} == {
        "configs/tiny.yaml", "notebooks/04_table2.ipynb", "figures/tiny/table2.csv", "figures/tiny/table2.json"
    }  # fmt: skip
    work = {name.removeprefix("work/tiny/") for name in contents if name.startswith("work/")}
    test, train = (index[index["split"] == split].iloc[0] for split in ("test", "train"))
    assert {"models/ResDM/timing.json", "evaluation/.status.record.json", "left_out.csv", "volumes/index.csv"} <= work
    assert {f"volumes/{row[what]}" for row in (test, train) for what in ("t1w", "tau")} <= work
    assert [name for name in work if name.startswith("predictions/ResDM/factual/sub-")]
    assert not [name for name in work if ".7." in name]  # what a killed writer left
    assert not [name for name in work if name.startswith(("bids", "predictions/ResDM/samples", "models/ResDM/model"))]
    assert graph["work/tiny/"]["description"].startswith(f"{len(work)} files")
    with pytest.raises(ConfigError, match="volumes of single people, and is written of phantoms only"):
        archive(changed(config, cohort={"kind": "dlbs", "phantom": None}), for_reading=True)
