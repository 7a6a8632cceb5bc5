"""Remake tests/data/goldens-lora: what PEFT merges, and what llama.cpp's converter makes of adapters.

    python -m tests.generate.lora_goldens CONVERT_LORA PYTHON [CASE...]      from the repository's root

CONVERT_LORA is llama.cpp's convert_lora_to_gguf.py, or a script that runs it; PYTHON has torch, transformers and peft.
"""

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..helpers.checkpoints import Miniature
from ..helpers.families import FAMILIES
from ..helpers.lora_adapters import CONV1D, FAMILY_FILES, FILES, IN_OUT, MERGES, Lora, base, lora_of
from ..helpers.paths import DATA
from .goldens import merge, read

GOLDENS = DATA / "goldens-lora"
OUTTYPES = ("f32", "f16", "bf16")
"""With auto, llama.cpp's converter dies of an AttributeError."""

PEFT = """
import sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
source, dtype, out, *adapters = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
for name, scale in zip(adapters[::2], adapters[1::2]):
    peft = PeftModel.from_pretrained(model, name)
    for module in peft.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", float(scale))
    model = peft.merge_and_unload()
tensors = {n: t.detach().float().contiguous() for n, t in model.named_parameters()}
save_file(tensors, out)
"""


def sample(values: np.ndarray) -> np.ndarray:
    """Some numbers of a tensor; the steps are prime to all lengths."""
    return values.reshape(-1)[:: 37 if values.size < 1 << 16 else 1009].astype("<f4")


def peft_merge(python: str, model: Miniature, loras: Sequence[tuple[Lora, float]]) -> dict[str, str]:
    """Some numbers of each of the model's tensors, merged; tensors that the model's files lack are left out."""
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, out = model.write(folder), folder / "merged.safetensors"
        adapters = [str(word) for lora, scale in loras for word in (lora.write(folder), scale)]
        torch_name = {"F32": "float32", "BF16": "bfloat16"}[model.dtype]
        subprocess.run([python, "-c", PEFT, str(source), torch_name, str(out), *adapters], check=True)
        merged = sorted((name, values) for name, values in load_file(out).items() if name in model.tensors())
        return {name: base64.b64encode(sample(values).tobytes()).decode() for name, values in merged}


def convert(script: str, outtype: str, lora: Path, source: Path) -> dict[str, Any]:
    out = lora.parent / "out.gguf"
    command = [script, str(lora), "--base", str(source), "--outtype", outtype, "--outfile", str(out)]
    if script.endswith(".py"):
        command.insert(0, sys.executable)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{lora.name}, {outtype}: {done.stderr[-3000:]}")
    return read(out)


def write(name: str, golden: Any) -> None:
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":")).replace("],[", "],\n[").replace('","', '",\n"')
    (GOLDENS / f"{name}.json").write_text(text + "\n", encoding="utf-8", newline="")
    print(name, flush=True)


def main(script: str, python: str, *cases: str) -> None:
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for case in cases or MERGES:
        write(f"merged-{case}", {dtype: peft_merge(python, base(dtype), MERGES[case]) for dtype in ("F32", "BF16")})
    if not cases:
        write("merged-in-out", peft_merge(python, CONV1D, [(IN_OUT, 0.5)]))
    for lora in () if cases else FILES:
        with tempfile.TemporaryDirectory() as name:
            source, path = base("BF16").write(Path(name)), lora.write(Path(name))
            write(f"adapter-{lora.name}", merge({o: convert(script, o, path, source) for o in OUTTYPES}))
    for family in [] if cases else [family for family in FAMILIES if family.name in FAMILY_FILES]:
        with tempfile.TemporaryDirectory() as name:
            source, path = family.write(Path(name)), lora_of(family).write(Path(name))
            write(f"adapter-{family.name}", merge({"f32": convert(script, "f32", path, source)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
