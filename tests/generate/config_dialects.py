"""Remake tests/data/config_dialects: what each version of transformers writes when it saves the same checkpoint again.

    python -m tests.generate.config_dialects ENVIRONMENTS [VERSION...]      from the repository's root

ENVIRONMENTS holds a virtual environment a version: python -m venv ENVIRONMENTS/VERSION, then its bin/pip installs
torch, sentencepiece, protobuf, pillow and transformers==VERSION. Only the small files are kept; the script stops when a
version changes a weight or the vocabulary.
"""

import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..helpers.config_dialects import BASES, DATA, SMALL, VERSIONS
from ..helpers.families import Miniature

RESAVE = Path(__file__).parent / "resave.py"


def tensors_of(path: Path) -> list[tuple[str, str]]:
    """A digest of each tensor's dtype, shape and bytes, and its name, in order."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        told = f"{entry['dtype']} {entry['shape']}".encode()
        found.append((hashlib.sha256(told + data[start:end]).hexdigest(), name))
    return sorted(found)


def renamed(ours: list[tuple[str, str]], theirs: list[tuple[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Tensors that got another name, and those that were left out."""
    names, left_out = {}, []
    rest = list(theirs)
    for key, name in ours:
        match = next((row for row in rest if row[0] == key), None)
        if match is None:
            left_out.append(name)
            continue
        rest.remove(match)
        if match[1] != name:
            names[name] = match[1]
    assert not rest, f"changed: {rest}"
    return names, left_out


def small_files(base: Path, saved: Path, version: str) -> Iterator[tuple[str, Any]]:
    """Each small file's name and content: without the vocabulary, and with VERSION where it names its version."""
    for name in SMALL:
        path = saved / name
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8").replace(f'"{version}"', '"VERSION"')
        value: Any = json.loads(text) if name.endswith(".json") else text
        if name == "tokenizer.json":
            vocabulary = json.loads((base / name).read_text(encoding="utf-8"))["model"]["vocab"]
            assert value["model"].pop("vocab") == vocabulary
            del value["model"]["merges"]
        yield name, value
    assert {path.name for path in saved.iterdir()} <= {*SMALL, "model.safetensors", "tokenizer.model"}
    yield "tokenizer.model", (saved / "tokenizer.model").exists()
    names, left_out = renamed(tensors_of(base / "model.safetensors"), tensors_of(saved / "model.safetensors"))
    yield "names", names
    yield "left out", left_out


def make(environments: Path, base: Miniature, versions: tuple[str, ...]) -> None:
    """One file of DATA: for each small file, its different contents, each with the versions that write it."""
    contents: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = replace(base, shards=1).write(Path(folder))
        for version in versions:
            saved = Path(folder) / version
            python = environments / version / "bin" / "python"
            subprocess.run([python, RESAVE, path, saved], check=True)
            for name, value in small_files(path, saved, version):
                rows = contents.setdefault(name, [])
                row = next((row for row in rows if row["content"] == value), None)
                if row:
                    row["versions"].append(version)
                else:
                    rows.append({"versions": [version], "content": value})
    text = json.dumps(contents, ensure_ascii=False, separators=(",", ":")).replace('},{"versions"', '},\n{"versions"')
    (DATA / f"{base.name}.json").write_text(text + "\n", encoding="utf-8", newline="")


def main(environments: str, *versions: str) -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    for base in BASES:
        make(Path(environments), base, versions or VERSIONS)
        print(base.name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
