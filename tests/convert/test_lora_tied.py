"""Adapters that change the embedding, the output layer or both, where the base model ties them and where it does not.

What is expected is what PEFT 0.21's merge_and_unload leaves, saved and loaded again by transformers 5.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from borealis_gguf import api
from borealis_gguf.errors import InvalidInput

from ..helpers.checkpoints import Miniature
from ..helpers.lora_adapters import Lora, base
from .test_lora import values

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

SHAPE = 4096, 64
PREFIX = "base_model.model."
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
A, B, EA, EB = (4, 64), (4096, 4), (4, 4096), (64, 4)
"""Shapes of LoRA's matrices of the output layer, and of the embedding."""


def matrix(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) / 8


def tensors(named: dict[str, np.ndarray]) -> Tensors:
    return {PREFIX + name: ("F32", value.shape, value.tobytes()) for name, value in named.items()}


NEW, OTHER = matrix(1, SHAPE), matrix(2, SHAPE)
OWN = np.frombuffer(base("F32").tensors()["model.embed_tokens.weight"][2], np.float32).reshape(SHAPE)
HEAD_LORA = {"lm_head.lora_A.weight": matrix(3, A), "lm_head.lora_B.weight": matrix(4, B)}
HEAD_DELTA = 2 * HEAD_LORA["lm_head.lora_B.weight"] @ HEAD_LORA["lm_head.lora_A.weight"]
LORA = {f"{EMBEDDING}.lora_embedding_A": matrix(5, EA), f"{EMBEDDING}.lora_embedding_B": matrix(6, EB)}
DELTA = 2 * (LORA[f"{EMBEDDING}.lora_embedding_B"] @ LORA[f"{EMBEDDING}.lora_embedding_A"]).T
SHARED = LORA | {
    "lm_head.lora_A.weight": np.ascontiguousarray(LORA[f"{EMBEDDING}.lora_embedding_B"].T),
    "lm_head.lora_B.weight": np.ascontiguousarray(LORA[f"{EMBEDDING}.lora_embedding_A"].T),
}
"""ensure_weight_tying with target_modules: the same matrices, once for each of the two."""


@dataclass(frozen=True)
class Case:
    """`copied` is modules_to_save, `tying` ensure_weight_tying; no `head` where embedding and output layer stay one."""

    name: str
    held: dict[str, np.ndarray]
    embedding: np.ndarray
    head: np.ndarray | None = None
    copied: tuple[str, ...] = ()
    tying: bool = False

    def lora(self) -> Lora:
        settings = {"modules_to_save": [*self.copied], "ensure_weight_tying": self.tying}
        return Lora(self.name, settings, {"q_proj": 4}, extra=tensors(self.held))


E, H = f"{EMBEDDING}.weight", f"{HEAD}.weight"
BOTH = ("embed_tokens", "lm_head")
CASES = [
    Case("both equal", {E: NEW, H: NEW}, NEW, copied=BOTH, tying=True),
    Case("both equal, not tied", {E: NEW, H: NEW}, NEW, NEW, copied=BOTH),
    Case("embedding for both", {E: NEW}, NEW, copied=("embed_tokens",), tying=True),
    Case("both unequal", {E: NEW, H: OTHER}, NEW, OTHER, copied=BOTH),
    Case("head alone", {H: NEW}, OWN, NEW, copied=("lm_head",)),
    Case("embedding alone", {E: NEW}, NEW, OWN, copied=("embed_tokens",)),
    Case("no copies, equal", {E: NEW, H: NEW}, NEW),
    Case("no copies, one", {E: NEW}, NEW),
    Case("LoRA on the head", HEAD_LORA | {f"{HEAD}.base_layer.weight": OWN}, OWN + HEAD_DELTA),
    Case("LoRA on the head alone", HEAD_LORA, OWN + HEAD_DELTA),
    Case("LoRA on the head of another base", HEAD_LORA | {f"{HEAD}.base_layer.weight": NEW}, NEW + HEAD_DELTA),
    Case("LoRA on the embedding", LORA | {f"{EMBEDDING}.base_layer.weight": OWN}, OWN + DELTA),
    Case("LoRA on both", LORA | HEAD_LORA, OWN + DELTA + HEAD_DELTA),
    Case("LoRA on both, shared", SHARED, OWN + DELTA, tying=True),
    Case("head copied, LoRA on the embedding", LORA | {H: NEW}, OWN + DELTA, NEW, copied=("lm_head",)),
    Case("embedding copied, LoRA on the head", HEAD_LORA | {E: NEW}, NEW, OWN + HEAD_DELTA, copied=("embed_tokens",)),
    Case("raw", {f"{HEAD}.original_module.weight": OTHER, f"{HEAD}.modules_to_save.default.weight": NEW}, OWN, NEW,
         copied=("lm_head",)),
]  # fmt: skip
"""Of 'LoRA on both, shared' PEFT adds the same update twice, which is not what was trained."""


def untied(**config: Any) -> Miniature:
    """A base that stores its output layer, with the embedding's bytes."""
    model = replace(base("F32"), head="tied")
    return replace(model, config=model.config | config)


def convert(folder: Path, case: Case, source: Path) -> tuple[np.ndarray, np.ndarray | None]:
    plan = api.plan_convert(source, folder / "x.gguf", outtype="f32", loras=[(case.lora().write(folder), 1.0)])
    api.execute([plan])
    found = {t.tensor.name: values(plan.path, t.offset, t.nbytes, t.type).reshape(t.tensor.shape) for t in plan.tensors
             if t.tensor.name in ("token_embd.weight", "output.weight")}  # fmt: skip
    return found["token_embd.weight"], found.get("output.weight")


def check(found: tuple[np.ndarray, np.ndarray | None], case: Case) -> None:
    assert np.abs(found[0] - case.embedding).max() < 1e-6
    assert (found[1] is None) == (case.head is None)
    if found[1] is not None and case.head is not None:
        assert np.abs(found[1] - case.head).max() < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_a_tied_base(tmp_path: Path, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    check(convert(tmp_path, case, base("F32").write(tmp_path)), case)
    assert "tie_word_embeddings" not in caplog.text.replace("tie_word_embeddings=False", "")  # the base stores no head


NAMED = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", [*CASES[:1], *CASES[4:11:2]], ids=lambda case: case.name)
def test_on_a_tied_base_that_stores_the_matrix_twice(tmp_path: Path, case: Case) -> None:
    check(convert(tmp_path, case, untied().write(tmp_path)), case)


@pytest.mark.parametrize(
    ("held", "embedding", "head"),
    [
        (HEAD_LORA, OWN, OWN + HEAD_DELTA),
        (HEAD_LORA | {f"{HEAD}.base_layer.weight": OWN}, OWN, OWN + HEAD_DELTA),
        (LORA, OWN + DELTA, OWN),
        (SHARED, OWN + DELTA, OWN + DELTA),
        ({E: NEW}, NEW, OWN),
    ],
)  # fmt: skip
def test_on_an_untied_base_each_has_its_own(
    tmp_path: Path, held: dict[str, np.ndarray], embedding: np.ndarray, head: np.ndarray
) -> None:
    found = convert(tmp_path, Case("x", held, embedding), untied(tie_word_embeddings=False).write(tmp_path))
    check(found, Case("x", held, embedding, head))


def test_lora_on_one_of_a_tied_pair_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = base("F32").write(tmp_path)
    api.plan_convert(source, tmp_path / "x.gguf", loras=[(Case("head", HEAD_LORA, OWN).lora().write(tmp_path), 1.0)])
    assert "one matrix here, so LoRA on one of them changes both, as PEFT's merge_and_unload does" in caplog.text


def test_unequal_matrices_of_a_tied_pair_that_are_no_copies_are_refused(tmp_path: Path) -> None:
    lora = Case("x", {E: NEW, H: OTHER}, NEW).lora().write(tmp_path)
    plan = api.plan_convert(base("F32").write(tmp_path), tmp_path / "x.gguf", loras=[(lora, 1.0)])
    with pytest.raises(InvalidInput, match=r"another embedding than output layer; .* modules_to_save names neither"):
        api.execute([plan])
    assert not plan.path.exists()


def test_unequal_copies_that_peft_tied_are_refused(tmp_path: Path) -> None:
    lora = Case("x", {E: NEW, H: OTHER}, NEW, copied=BOTH, tying=True).lora().write(tmp_path)
    plan = api.plan_convert(base("F32").write(tmp_path), tmp_path / "x.gguf", loras=[(lora, 1.0)])
    with pytest.raises(InvalidInput, match="ensure_weight_tying is true, but embedding and output layer differ"):
        api.execute([plan])


def test_two_adapters_that_bring_a_head(tmp_path: Path) -> None:
    loras = [(Case(name, {H: NEW}, OWN, copied=("lm_head",)).lora().write(tmp_path), 1.0) for name in "ab"]
    with pytest.raises(InvalidInput, match="two adapters replace this tensor"):
        api.plan_convert(base("F32").write(tmp_path), loras=loras)


# ---- convert-lora


ALONE = "both equal", "embedding alone", "LoRA on the head", "LoRA on the embedding"


@pytest.mark.parametrize("case", [NAMED[name] for name in ALONE], ids=ALONE)
def test_convert_lora_gives_the_command_that_works(tmp_path: Path, case: Case) -> None:
    source, lora = base("F32").write(tmp_path), case.lora().write(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        api.plan_convert_lora(lora, source, tmp_path / "x.gguf")
    command = str(caught.value).partition("merge it into the model instead: ")[2]
    assert command.split(" --lora ")[0] == f"borealis-gguf convert {source}"
    assert json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"] == "LORA"
    api.plan_convert(source, tmp_path / "x.gguf", loras=[(lora, 1.0)])


def test_an_untied_head_beside_its_own_weights_becomes_an_adapter_file(tmp_path: Path) -> None:
    """PEFT stores the base's output layer beside LoRA's matrices of it; that changes nothing."""
    held = HEAD_LORA | {f"{HEAD}.base_layer.weight": OWN}
    source = untied(tie_word_embeddings=False).write(tmp_path)
    plan = api.plan_convert_lora(Case("x", held, OWN).lora().write(tmp_path), source, tmp_path / "x.gguf")
    assert [t.tensor.name for t in plan.tensors][-2:] == ["output.weight.lora_a", "output.weight.lora_b"]
    changed = Case("y", held | {f"{HEAD}.base_layer.weight": NEW}, OWN).lora().write(tmp_path)
    plan = api.plan_convert_lora(changed, source, tmp_path / "y.gguf")
    with pytest.raises(InvalidInput, match=r"holds 'lm_head\.weight' whole"):
        api.execute([plan])
