"""Remake tests/data/goldens: what llama.cpp's converter makes of every miniature checkpoint.

    python -m tests.generate.goldens CONVERT [NAME...]      from the repository's root

CONVERT is llama.cpp's convert_hf_to_gguf.py, or a script that runs it (it needs torch and transformers).
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType

from ..helpers.checkpoints import MINIATURES, NANO, PLAIN, TIED_HEAD
from ..helpers.paths import DATA

GOLDENS = DATA / "goldens"
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")
LONG = 64


def digest(values: Any, item_type: GGUFValueType) -> str:
    """SHA-256 of an array: texts as UTF-8 with a NUL after each, numbers as 4-byte little-endian."""
    if item_type == GGUFValueType.STRING:
        return hashlib.sha256(b"".join(v.encode() + b"\0" for v in values)).hexdigest()
    kind = "<f4" if item_type == GGUFValueType.FLOAT32 else "<i4"
    return hashlib.sha256(np.asarray(values, dtype=kind).tobytes()).hexdigest()


def golden_kv(key: str, type: GGUFValueType, item_type: GGUFValueType | None, value: Any) -> list[Any]:
    """A metadata entry as JSON: floats as the nearest float32, long arrays as their length and digest."""
    if type == GGUFValueType.FLOAT32:
        return [key, type.name, float(np.float32(value))]
    if type != GGUFValueType.ARRAY or item_type is None:
        return [key, type.name, value]
    if len(value) > LONG:
        return [key, item_type.name, {"items": len(value), "sha256": digest(value, item_type)}]
    return [key, item_type.name, list(value)]


def read(path: Path) -> dict[str, Any]:
    reader = GGUFReader(path)
    fields = [f for key, f in reader.fields.items() if not key.startswith("GGUF.")]
    kv = [golden_kv(f.name, f.types[0], f.types[-1] if len(f.types) > 1 else None, f.contents()) for f in fields]
    tensors = [
        (t.name, [int(n) for n in reversed(t.shape)], t.tensor_type.name, hashlib.sha256(t.data.tobytes()).hexdigest())
        for t in reader.tensors
    ]
    return {"kv": kv, "tensors": tensors}


def merge(files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One golden of the outtypes' files: they differ in types, bytes, and general.file_type."""
    first = files["f32"]
    golden: dict[str, Any] = {"kv": without_file_type(first["kv"]), "file_type": {}, "types": {}, "tensors": []}
    for outtype, file in files.items():
        if without_file_type(file["kv"]) != golden["kv"]:
            raise SystemExit(f"{outtype}: its metadata differ in more than general.file_type")
        golden["file_type"][outtype] = next((kv[2] for kv in file["kv"] if kv[0] == "general.file_type"), None)
        golden["types"][outtype] = " ".join(t[2] for t in file["tensors"])
    for row in zip(*(file["tensors"] for file in files.values()), strict=True):
        golden["tensors"].append([row[0][0], row[0][1], {t[2]: t[3] for t in row}])
    return golden


def without_file_type(kv: list[list[Any]]) -> list[list[Any]]:
    return [entry[:2] if entry[0] == "general.file_type" else entry for entry in kv]


def convert(script: str, checkpoint: Path, outtype: str, *options: str) -> dict[str, Any]:
    out = checkpoint.parent / "out.gguf"
    command = [script, str(checkpoint), "--outtype", outtype, "--outfile", str(out), *options]
    if script.endswith(".py"):
        command.insert(0, sys.executable)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkpoint.name}, {outtype}: {done.stderr[-3000:]}")
    return read(out)


def main(script: str, *names: str) -> None:
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for miniature in (None, *MINIATURES, TIED_HEAD):
        name = miniature.name if miniature else NANO.name
        if not names or name in names:
            with tempfile.TemporaryDirectory() as folder:
                path = miniature.write(Path(folder)) if miniature else copy_of_nano(Path(folder))
                write(name, {outtype: convert(script, path, outtype) for outtype in OUTTYPES})
        if miniature and miniature.vision and (not names or f"mmproj-{name}" in names):
            with tempfile.TemporaryDirectory() as folder:
                path = replace(miniature, vision=PLAIN).write(Path(folder))
                write(f"mmproj-{name}", {outtype: convert(script, path, outtype, "--mmproj") for outtype in OUTTYPES})


def write(name: str, files: dict[str, dict[str, Any]]) -> None:
    golden = merge(files)
    text = json.dumps(golden, ensure_ascii=False, indent=None, separators=(",", ":")).replace("],[", "],\n[")
    (GOLDENS / f"{name}.json").write_text(text + "\n", encoding="utf-8", newline="")
    print(name, len(golden["kv"]), "entries,", len(golden["tensors"]), "tensors", flush=True)


def copy_of_nano(folder: Path) -> Path:
    """The converter writes its output beside the checkpoint, so not to the repository."""
    target = folder / NANO.name
    target.mkdir()
    for path in NANO.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


if __name__ == "__main__":
    main(*sys.argv[1:])
