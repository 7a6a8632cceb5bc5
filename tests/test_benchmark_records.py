"""Generated parts of docs/ are what their sources make, figures are those of the records."""

import argparse
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from .helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
WRITER = runpy.run_path(str(BENCHMARKS / "write_docs.py"))
RECORDS = sorted((BENCHMARKS / "records").glob("*.json"))


def test_documents_are_what_their_sources_make() -> None:
    for path, text in WRITER["documents"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} differs from its sources: make docs"
        assert "<!-- end -->" in text or path.name == "benchmarks.md"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_are_whole(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    script = ROOT / record["command"].split()[1]
    assert script.parent == BENCHMARKS and script.is_file()
    assert "--record" in record["command"] and "/" not in record["command"].replace("benchmarks/", "")
    assert record["machine"].keys() == {"cpu", "simd", "cores", "memory_gb", "os", "python"}
    assert record["rows"]
    for row in record["rows"]:
        assert row.keys() == {"what", "side", "unit", "n", "median", "min", "max"} and row["n"] >= 1
        assert row["min"] is None or row["min"] <= row["median"] <= row["max"]


def test_a_benchmark_writes_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: dict[str, Any] = runpy.run_path(str(BENCHMARKS / "records.py"))
    save = records["save"]
    monkeypatch.setitem(save.__globals__, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(
        sys, "argv", ["benchmarks/cores.py", "/tmp/a/bench", "g/m.gguf", "--converter", "python /b/c.py", "--record"]
    )
    parser = argparse.ArgumentParser()
    records["add_option"](parser, "cores")
    rows = [records["row"]("time", "two", "s", [3.0, 1.0, 2.0])]
    save(parser.parse_args([]), rows)
    assert not (tmp_path / "records").exists()
    save(parser.parse_args(["--record"]), rows, {"the same file": True})
    record = json.loads((tmp_path / "records" / "cores.json").read_text(encoding="utf-8"))
    assert record["command"] == 'python benchmarks/cores.py bench m.gguf --converter "python c.py" --record'
    assert record["rows"] == [
        {"what": "time", "side": "two", "unit": "s", "n": 3, "median": 2.0, "min": 1.0, "max": 3.0}
    ]
    assert WRITER["table"](record["rows"]).splitlines()[-1] == "| time | 2 (1–3) |"
    text = WRITER["section"](record)
    assert text.startswith("## What a second core brings") and "- the same file: yes\n" in text and "n = 3." in text


def test_every_benchmark_that_measures_can_record() -> None:
    helpers = {"machine", "shapes", "records", "write_docs", "encoder_proof"}
    for path in BENCHMARKS.glob("*.py"):
        assert path.stem in helpers or "records.save(" in path.read_text(encoding="utf-8"), path.name
