"""Adapter files in llama.cpp: beside a model they compute what the merged model computes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.runtime.events import Options
from borealis_gguf.runtime.model import load

from ..helpers.asking import alone, generate, local
from ..helpers.lora_adapters import FOR_NANO, MERGES, PATTERNS, PLAIN, Lora, base, write_adapter

SCALED = replace(PATTERNS, saved=(), settings=PATTERNS.settings | {"modules_to_save": None})
IDS = [2, *range(300, 4000, 90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its GGUF, adapters and their GGUFs."""
    folder = tmp_path_factory.mktemp("lora")
    source = base("F32").write(folder)
    plans = [api.plan_convert(source, folder / "base.gguf", outtype="f32")]
    for lora in (PLAIN, SCALED, MERGES["two"][1][0]):
        plans.append(api.plan_convert_lora(lora.write(folder), source, folder / f"{lora.name}.gguf"))
    api.execute(plans)
    return folder


def logits(path: Path, loras: Sequence[tuple[str | Path, float]] = ()) -> np.ndarray:
    """Of the token after IDS."""
    with load(path, context=256, loras=loras) as model:
        return local(model).engine.logits(IDS, [len(IDS) - 1])[0]


CASES: dict[str, list[tuple[Lora, float]]] = {
    "quarter": [(PLAIN, 0.25)],
    "scalings": [(SCALED, 0.4)],
    "two": [(PLAIN, 0.25), (MERGES["two"][1][0], -1.5)],
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_merged_model(folder: Path, case: str) -> None:
    """The two ways add in another order, and keys and values are rounded to half precision in the cache."""
    source, pairs = folder / base("F32").name, CASES[case]
    merged = api.plan_convert(
        source, folder / f"{case}.gguf", outtype="f32", loras=[(folder / a.name, s) for a, s in pairs]
    )
    api.execute([merged])
    want, plain = logits(merged.path), logits(folder / "base.gguf")
    got = logits(folder / "base.gguf", [(folder / f"{a.name}.gguf", s) for a, s in pairs])
    span = np.ptp(want)
    assert np.abs(got - want).max() < 1e-4 * span
    assert np.abs(plain - want).max() > 0.02 * span


def test_the_child_process_uses_them_too(nano: Path, nano_q8: Path, tmp_path: Path) -> None:
    plan = api.plan_convert_lora(FOR_NANO.write(tmp_path), nano, tmp_path)
    api.execute([plan])
    ask = {"raw": True, "options": {"max_tokens": 8}, "sampling": {"temperature": 0}, "context": 64}
    with load(nano_q8, loras=[(plan.path, 1.0)], context=64, sampling={"temperature": 0}) as model:
        want = generate(model, "Norge er", raw=True, max_tokens=8)
    assert alone(nano_q8, "Norge er", loras=[(plan.path, 1.0)], **ask) == want
    assert alone(nano_q8, "Norge er", **ask) != want


def test_a_conversation_belongs_to_adapters_and_scales(
    nano: Path, nano_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path / "cache"))
    plan = api.plan_convert_lora(FOR_NANO.write(tmp_path), nano, tmp_path)
    api.execute([plan])
    saved, changed = tmp_path / "a.state", tmp_path / "changed.gguf"
    data = bytearray(plan.path.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)

    def again(*loras: tuple[Path, float]) -> int:
        """How much was known already."""
        with load(nano_q8, loras=loras, context=256) as model:
            answer = model.load_conversation(saved).send("Og?", options=Options(max_tokens=2))
            answer.text()
            return answer.finished.usage.cached_tokens  # type: ignore[union-attr]

    with load(nano_q8, loras=[(plan.path, 0.5)], context=256) as model:
        conversation = model.conversation(options=Options(max_tokens=8, seed=1))
        conversation.send("Hei!").text()
        conversation.save(saved)
    assert again((plan.path, 0.5)) > 10
    for loras in ([], [(plan.path, 0.25)], [(plan.path, 0.5), (plan.path, 0.5)], [(changed, 0.5)]):
        with pytest.raises(InvalidInput, match="but with other adapters or scales; load it with the same ones"):
            again(*loras)


Q = "blk.0.attn_q.weight"
FAULTS = {
    "is not in the model": {"blk.7.attn_q.weight.lora_a": (4, 64), "blk.7.attn_q.weight.lora_b": (128, 4)},
    "only one half": {f"{Q}.lora_a": (4, 64)},
    "changes a matrix of": {f"{Q}.lora_a": (4, 32), f"{Q}.lora_b": (128, 4)},
    "output is tied to it": {"token_embd.weight.lora_a": (4096, 4), "token_embd.weight.lora_b": (64, 4)},
}


@pytest.mark.parametrize("words", FAULTS)
def test_adapters_of_another_model_never_reach_llama_cpp(folder: Path, tmp_path: Path, words: str) -> None:
    path = write_adapter(tmp_path / "x.gguf", FAULTS[words])
    with pytest.raises(InvalidInput, match=words) as caught:
        load(folder / "base.gguf", loras=[(path, 1.0)])
    assert "\n" not in str(caught.value)


def test_what_is_no_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    model = folder / "base.gguf"
    (tmp_path / "text.gguf").write_text("hello", encoding="utf-8")
    for path, scale, words in (
        (model, 1.0, "no LoRA adapter but 'model'"),
        (
            write_adapter(tmp_path / "other.gguf", {}, arch="llama"),
            1.0,
            "an adapter for 'llama', but the model is 'gemma3'",
        ),
        (tmp_path / "text.gguf", 1.0, "text.gguf"),
        (tmp_path / "none.gguf", 1.0, "none.gguf"),
        (folder / PLAIN.name, 1.0, "not a file but a folder"),
        (folder / f"{PLAIN.name}.gguf", float("inf"), "a scale of inf"),
    ):
        with pytest.raises(InvalidInput, match=words):
            load(model, loras=[(path, scale)])
    with pytest.raises(InvalidInput, match="not a language model but a adapter"):
        load(folder / f"{PLAIN.name}.gguf")


def test_what_llama_cpp_refuses_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "ranks.gguf", {f"{Q}.lora_a": (4, 64), f"{Q}.lora_b": (128, 3)})
    with pytest.raises(BorealisError, match=r"ranks\.gguf: llama\.cpp cannot use this adapter: .*lora_a") as caught:
        load(folder / "base.gguf", loras=[(path, 1.0)])
    assert "\n" not in str(caught.value)
