"""Weights beyond the largest number of their type: refused with the tensor's name and the option that helps."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import FilePlan, api
from borealis_gguf.errors import BorealisError

from ..helpers.checkpoints import write_shards
from ..helpers.lora_adapters import PLAIN, base
from ..helpers.tiny import bf16

NAME = {
    "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
    "model.embed_tokens.weight": "token_embd.weight",
}
LAYER, EMBEDDING = NAME


def checkpoint(folder: Path, name: str, value: float, dtype: str = "BF16") -> Path:
    """One with a `value` in tensor `name`."""
    model = base(dtype)
    path, tensors = model.write(folder), model.tensors()
    kind, shape, data = tensors[name]
    values = np.frombuffer(data, np.uint16 if dtype == "BF16" else np.float32).copy()
    values[70:71] = bf16(np.array([value], np.float32)) if dtype == "BF16" else value
    write_shards(path, tensors | {name: (kind, shape, values.tobytes())}, 1)
    return path


def refusal(plans: tuple[FilePlan, ...], capfd: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(BorealisError) as caught:
        api.execute(plans)
    assert not plans[0].path.exists() and "\n" not in str(caught.value)
    assert "ggml" not in capfd.readouterr().err
    return str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "value", "outtype", "options"),
    [
        ("BF16", 7e4, "f16", "--outtype bf16 or --outtype f32"),
        ("BF16", -7e4, "f16", "--outtype bf16 or --outtype f32"),
        ("BF16", 1e7, "q8_0", "--outtype bf16 or --outtype f32"),
        ("F32", 3.4e38, "bf16", "--outtype f32"),
    ],
)
def test_overflow_when_converting(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], dtype: str, value: float, outtype: str, options: str
) -> None:
    path = checkpoint(tmp_path, LAYER, value, dtype)
    message = refusal((api.plan_convert(path, tmp_path / "x.gguf", outtype=outtype),), capfd)
    assert f"{NAME[LAYER]}: a weight in rows 0 to" in message
    assert message.endswith(f"is too large for {outtype.upper()}; use {options} (--allow-nonfinite writes infinity)")
    api.execute([api.plan_convert(path, tmp_path / "x.gguf", outtype=options.rpartition(" ")[2])])


@pytest.mark.parametrize(
    ("preset", "name", "value", "options"),
    [
        ("Q8_0", LAYER, 1e7, "--tensor-type blk.1.attn_q.weight=bf16 or --tensor-type blk.1.attn_q.weight=f32"),
        ("Q4_0", LAYER, 1e6, "--tensor-type blk.1.attn_q.weight=bf16 or --tensor-type blk.1.attn_q.weight=f32"),
        ("Q4_0", EMBEDDING, 1e8, "--token-embedding-type bf16 or --token-embedding-type f32"),
        ("F16", LAYER, 7e4, "the preset bf16 or the preset f32"),
    ],
)
def test_overflow_when_quantizing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], preset: str, name: str, value: float, options: str
) -> None:
    path = checkpoint(tmp_path, name, value)
    message = refusal(api.plan_quantize(path, [preset], tmp_path / "x.gguf"), capfd)
    assert f"{NAME[name]}: a weight in rows 0 to" in message and f"; use {options} (" in message
    if preset == "F16":
        api.execute(api.plan_quantize(path, ["BF16"], tmp_path / "x.gguf"))
    elif name == LAYER:
        types = [options.split()[1]]
        api.execute(api.plan_quantize(path, [preset], tmp_path / "x.gguf", tensor_types=types))
    else:
        api.execute(api.plan_quantize(path, [preset], tmp_path / "x.gguf", token_embedding_type="bf16"))


def test_overflow_when_merging_adapters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lora, source = PLAIN.write(tmp_path), base("BF16").write(tmp_path)
    file = lora / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(7e4).tobytes()
    file.write_bytes(data)
    message = refusal((api.plan_convert_lora(lora, source, tmp_path / "x.gguf", outtype="f16"),), capfd)
    assert "is too large for F16; use --outtype bf16 or --outtype f32" in message


def test_ggml_prints_nothing_on_standard_error(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, LAYER, 7e4)
    code = "from borealis_gguf.cli.main import main; main()"
    command = [sys.executable, "-c", code, "convert", str(path), "-o", str(tmp_path / "x.gguf"), "--outtype", "f16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
