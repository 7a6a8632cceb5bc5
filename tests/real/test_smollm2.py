"""SmolLM2 135M instruct as others published it: a GGUF of another family, quantized already."""

import filecmp
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import api, load
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quantize.presets import find_preset
from borealis_gguf.runtime.events import Options
from borealis_gguf.runtime.model import Model

from ..cli.test_cli import run
from ..helpers.asking import encode, local
from ..helpers.llama_quantize import llama_quantize
from ..helpers.serving import serving
from ..runtime.test_terminal_chat import talk
from .material import real

ASKED: list[Any] = [{"role": "user", "content": "What is 2+2?"}]
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SUM = "is 4."
"""How each of its answers to that ends."""
SHORT = Options(max_tokens=24)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return real("smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[Model]:
    with load(smollm2, sampling={"temperature": 0}, context=2048, threads=1, batch_invariant=True) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def requantized(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    done = run("quantize", "Q8_0", "-m", smollm2, "-o", folder, "--allow-requantize")
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path


def test_inspect(smollm2: Path) -> None:
    done = run("inspect", smollm2)
    assert done.returncode == 0, done.stderr
    head, *rest = done.stdout.splitlines()
    kinds = "GGUF v3, 272 tensors (210 Q4_1, 61 F32, 1 Q8_0), 134,515,008 weights, 5.74 bits each"
    assert head == f"{smollm2}: {kinds}"
    rows = {row.split()[0]: row.split() for row in rest if row}
    assert rows["llama.attention.head_count_kv"][1:] == ["UINT32", "3"]
    assert rows["tokenizer.ggml.pre"][-1] == "'smollm'"
    assert " ".join(rows["token_embd.weight"]) == "token_embd.weight 49152 x 576 Q8_0 30.1 MB"


def test_inspect_json(smollm2: Path) -> None:
    done = run("inspect", smollm2, "--json")
    assert done.returncode == 0, done.stderr
    told, header = json.loads(done.stdout), read_gguf(smollm2)
    assert [entry["key"] for entry in told["kv"]] == [entry.key for entry in header.kv]
    values = {entry["key"]: entry["value"] for entry in told["kv"]}
    assert values["tokenizer.chat_template"] == header.value("tokenizer.chat_template")
    assert tuple(values["tokenizer.ggml.tokens"]) == tuple(header.value("tokenizer.ggml.tokens"))
    assert {tensor["name"]: tuple(tensor["shape"]) for tensor in told["tensors"]} == {
        name: slice.shape for name, slice in header.tensors.items()
    }
    assert told["tensors"][-1]["offset"] + told["tensors"][-1]["size"] <= smollm2.stat().st_size


def test_run(smollm2: Path) -> None:
    done = run("run", smollm2, ASKED[0]["content"], "--temperature", "0", "-n", "24", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"{SUM}\n")


def test_a_prompt_is_what_its_template_says(model: Model) -> None:
    """With the system message that the template has where none is given, no BOS, and control tokens for its marks."""
    ids = encode(model, ASKED)
    start, end, newline = 1, 2, model.tokenize("\n")
    turn = [*model.tokenize(f"system\n{DEFAULT_SYSTEM}"), end, *newline, start]
    turn += [*model.tokenize("user\nWhat is 2+2?"), end, *newline, start]
    assert ids == [start, *turn, *model.tokenize("assistant\n")]
    assert [local(model).engine.is_control(id) for id in (start, end)] == [True, True]
    own = encode(model, [{"role": "system", "content": "Be brief."}, *ASKED])
    assert DEFAULT_SYSTEM not in model.detokenize(own) and "Be brief." in model.detokenize(own)


def test_chat(model: Model, smollm2: Path) -> None:
    seen = talk(model, ASKED[0]["content"], "/stats", "And 3+3?")
    assert SUM in seen.messages[1]["content"] and len(seen.messages) == 4 and not seen.chat.errors_shown
    assert "cached" in seen.err.splitlines()[-1]
    text = f"/set max_tokens 24\n{ASKED[0]['content']}\n"
    done = run("chat", smollm2, "--temperature", "0", text=text)
    assert done.returncode == 0 and SUM in done.stdout, done


def test_serve(model: Model, smollm2: Path) -> None:
    expected = model.chat(ASKED, SHORT).text()
    assert expected.endswith(SUM)
    with serving(smollm2) as server:
        chat = server.client.chat.completions
        asked: dict[str, Any] = {"model": "m", "messages": ASKED, "max_tokens": 24, "temperature": 0}
        whole = chat.create(**asked)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (expected, "stop")
        assert whole.usage.prompt_tokens == len(encode(model, ASKED))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chat.create(**asked, stream=True)) == expected
        made = server.client.embeddings.create(model="m", input=["Oslo", "Bergen"])
        assert [len(each.embedding) for each in made.data] == [576, 576]


def test_requantizing_must_be_asked_for(smollm2: Path, tmp_path: Path) -> None:
    done = run("quantize", "Q8_0", "-m", smollm2, "-o", tmp_path)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {smollm2}: blk.0.attn_k.weight is quantized already (Q4_1); ")
    assert line.endswith("accept the loss with --allow-requantize")


def test_requantized(smollm2: Path, requantized: Path, tmp_path: Path) -> None:
    """llama.cpp's own file, which passes the full check against the one that it was made from."""
    assert requantized.name == "SmolLM2-135M-Instruct-Q8_0.gguf"
    ok, log = llama_quantize(smollm2, tmp_path / "theirs", find_preset("Q8_0"), allow_requantize=True, threads=2)
    assert ok, log[-500:]
    assert filecmp.cmp(requantized, tmp_path / "theirs", shallow=False)
    report = api.check(requantized, smollm2)
    assert report.ok and not report.quick, report.failures
    looked = {section.title for section in report.sections if section.checked}
    assert looked == {"metadata", "tensors", "weights", "token ids", "special tokens"}
    with load(requantized, sampling={"temperature": 0}, context=256, threads=1) as loaded:
        assert loaded.chat(ASKED, SHORT).text().endswith(SUM)


def test_a_damaged_weight_is_found(smollm2: Path, requantized: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    data = bytearray(requantized.read_bytes())
    data[read_gguf(requantized).tensors["blk.17.ffn_up.weight"].offset + 1000] ^= 0x40
    damaged.write_bytes(data)
    report = api.check(damaged, smollm2)
    assert ["blk.17.ffn_up.weight" in failure.where for failure in report.failures] == [True]


def test_no_modelfile_for_another_family(smollm2: Path) -> None:
    done = run("modelfile", smollm2)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: {smollm2}: a llama model; Modelfiles are written for gemma3 models\n"


def test_it_is_not_converted(smollm2: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is a GGUF already; use: borealis-gguf quantize PRESET -m"):
        api.plan_convert(smollm2, tmp_path)
