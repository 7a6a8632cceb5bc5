"""Tokens without an embedding row never vanish: refused with advice, except the placeholder of Gemma 3's images."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.convert.describe import describe
from borealis_gguf.errors import InvalidInput

from ..helpers.checkpoints import (
    BOTH,
    JSON_ONLY,
    MODEL_ONLY,
    N_NANO,
    Files,
    Miniature,
    config,
    image_token,
    nano_tokenizer,
    write_json,
)
from ..helpers.families import FAMILIES, N_BPE, N_SP

NEW = ("<min_0>", "<min_1>", "<min_2>")
IMAGE = "<image_soft_token>"
RESIZE = "call model.resize_token_embeddings(len(tokenizer)) in transformers and save the model again, or remove "
RESIZE += "these tokens from the tokenizer"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(value)
    write_json(path, value)


def add(first: int, *texts: str, where: tuple[str, ...] = ("tokenizer.json", "tokenizer_config.json")) -> Files:
    """Add tokens from the id `first` on to these files of a tokenizer, if they are there."""

    def change(folder: Path) -> None:
        for id, text in enumerate(texts, first):
            token = {"content": text, "special": text == IMAGE, "normalized": False}
            token |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            if "tokenizer.json" in where and (folder / "tokenizer.json").exists():
                edit(
                    folder / "tokenizer.json",
                    lambda v, id=id, token=token: v["added_tokens"].append({"id": id} | token),
                )
            if "tokenizer_config.json" in where:
                edit(
                    folder / "tokenizer_config.json",
                    lambda v, id=id, token=token: v.setdefault("added_tokens_decoder", {}).update({str(id): token}),
                )
            if "added_tokens.json" in where:
                edit(folder / "added_tokens.json", lambda v, id=id, text=text: v.update({text: id}))
            if "vocab" in where:
                edit(folder / "tokenizer.json", lambda v, id=id, text=text: v["model"]["vocab"].update({text: id}))

    return change


def both(*steps: Files) -> Files:
    def change(folder: Path) -> None:
        for step in steps:
            step(folder)

    return change


def gemma(tokenizer: Files, rows: int = N_NANO) -> Miniature:
    return Miniature("m", config(vocab_size=rows), tokenizer=tokenizer)


def described(folder: Path) -> tuple[KV, ...]:
    return describe(open_checkpoint(folder), "auto")[0].kv


def refused(folder: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        described(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'config.json'}: vocab_size is ") and len(message) < 700
    return message


SPM, BPE = (next(f for f in FAMILIES if f.name == name) for name in ("normistral-7b-warm-mini", "qwen2-mini"))
TOKENIZERS = pytest.mark.parametrize(
    ("model", "n"),
    [
        (gemma(both(BOTH, add(N_NANO, *NEW))), N_NANO),
        (gemma(both(JSON_ONLY, add(N_NANO, *NEW))), N_NANO),
        (gemma(both(MODEL_ONLY, add(N_NANO, *NEW, where=("added_tokens.json",)))), N_NANO),
        (gemma(both(BOTH, add(N_NANO, *NEW, where=("tokenizer.json",)))), N_NANO),
        (gemma(both(BOTH, add(N_NANO, *NEW, where=("vocab",)))), N_NANO),
        (gemma(both(JSON_ONLY, add(N_NANO, *NEW, where=("vocab",)))), N_NANO),
        (replace(SPM, tokenizer=both(SPM.tokenizer, add(N_SP, *NEW))), N_SP),
        (replace(BPE, tokenizer=both(BPE.tokenizer, add(N_BPE, *NEW))), N_BPE),
        (replace(BPE, tokenizer=both(BPE.tokenizer, add(N_BPE, *NEW, where=("tokenizer_config.json",)))), N_BPE),
        (replace(BPE, tokenizer=both(BPE.tokenizer, add(N_BPE, *NEW, where=("added_tokens.json",)))), N_BPE),
    ],
    ids=(
        *("both", "json", "added_tokens.json", "json, not decoder", "vocab", "json's vocab"),
        *("llama", "qwen2", "qwen2, decoder only", "qwen2, added_tokens.json only"),
    ),
)


@TOKENIZERS
def test_tokens_without_rows(tmp_path: Path, model: Miniature, n: int) -> None:
    message = refused(model.write(tmp_path))
    assert message.endswith(
        f"vocab_size is {n}, which leaves these tokens without an embedding: "
        f"'<min_0>' (id {n}), '<min_1>' (id {n + 1}), '<min_2>' (id {n + 2}); {RESIZE}"
    )


@TOKENIZERS
def test_rows_that_vocab_size_cuts_off(tmp_path: Path, model: Miniature, n: int) -> None:
    folder = replace(model, config=model.config | {"vocab_size": n + 3}).write(tmp_path)
    write_json(folder / "config.json", model.config)
    assert refused(folder).endswith(f"; the embedding has {n + 3} rows, so set vocab_size to {n + 3}")


def test_following_the_advice_keeps_the_tokens(tmp_path: Path) -> None:
    for n, (model, first) in enumerate(((gemma(both(BOTH, add(N_NANO, *NEW))), N_NANO), (SPM, N_SP), (BPE, N_BPE))):
        tokenizer = model.tokenizer if n == 0 else both(model.tokenizer, add(first, *NEW))
        (tmp_path / str(n)).mkdir()
        model = replace(model, tokenizer=tokenizer, config=model.config | {"vocab_size": first + 3})
        kv = {kv.key: kv.value for kv in described(model.write(tmp_path / str(n)))}
        assert kv["tokenizer.ggml.tokens"][first:] == NEW and kv["tokenizer.ggml.token_type"][first:] == (4, 4, 4)


def test_some_rows_are_not_enough(tmp_path: Path) -> None:
    model = gemma(both(BOTH, add(N_NANO, *NEW)))
    folder = replace(model, config=config(vocab_size=N_NANO + 2)).write(tmp_path)
    assert "embedding: '<min_2>' (id 4098); call model.resize" in refused(folder)
    write_json(folder / "config.json", config())
    assert "'<min_0>' (id 4096), '<min_1>' (id 4097), '<min_2>' (id 4098); call model.resize" in refused(folder)


def test_many_tokens_are_one_short_line(tmp_path: Path) -> None:
    texts = [f"<{'x' * 500}{n}>" for n in range(3000)]
    message = refused(gemma(both(MODEL_ONLY, add(10**40, *texts[:1], where=("added_tokens.json",)))).write(tmp_path))
    assert "(id 10000000000000000000…)" in message
    folder = tmp_path / "m"
    write_json(folder / "added_tokens.json", {text: N_NANO + n for n, text in enumerate(texts)})
    assert " and 2996 more; " in refused(folder)


@pytest.mark.parametrize(
    "tokenizer",
    [
        both(nano_tokenizer("tokenizer.model"), image_token),
        both(JSON_ONLY, add(N_NANO, IMAGE)),
        both(JSON_ONLY, add(N_NANO, IMAGE, where=("tokenizer.json", "vocab"))),
        both(BOTH, add(N_NANO, IMAGE, where=("added_tokens.json",))),
    ],
    ids=["both", "json", "vocab", "added_tokens.json"],
)
def test_gemma_3s_image_token_needs_no_row(tmp_path: Path, tokenizer: Files, caplog: pytest.LogCaptureFixture) -> None:
    """Gemma 3 270m and 1b are published so; nothing is said, and the GGUF passes the quick check."""
    source = gemma(tokenizer).write(tmp_path)
    edit(source / "tokenizer_config.json", lambda v: v.pop("chat_template", None))
    api.execute([api.plan_convert(source, tmp_path / "m.gguf")])
    assert not caplog.records and api.check(tmp_path / "m.gguf", source).ok
    tokens = next(kv.value for kv in described(source) if kv.key == "tokenizer.ggml.tokens")
    assert len(tokens) == N_NANO and IMAGE not in tokens


def test_a_token_beside_the_image_token_needs_a_row(tmp_path: Path) -> None:
    folder = gemma(both(BOTH, add(N_NANO, IMAGE, "<min_0>"))).write(tmp_path)
    assert f"embedding: '<min_0>' (id {N_NANO + 1}); " in refused(folder)


def test_check_tells_of_a_gguf_that_another_tool_made(tmp_path: Path) -> None:
    source = gemma(BOTH).write(tmp_path)
    api.execute([api.plan_convert(source, tmp_path / "m.gguf")])
    add(N_NANO, *NEW)(source)
    with pytest.raises(InvalidInput, match="vocab_size is 4096, which leaves these tokens without an embedding"):
        api.check(tmp_path / "m.gguf", source)


def test_pieces_that_only_tokenizer_json_has(tmp_path: Path) -> None:
    """They would become padding."""
    folder = gemma(both(BOTH, add(N_NANO, *NEW, where=("vocab",))), rows=N_NANO + 64).write(tmp_path)
    with pytest.raises(InvalidInput, match=r"tokenizer.json: id 4096 is '<min_0>', but no piece in tokenizer.model"):
        described(folder)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("tokenizer", [BOTH, JSON_ONLY], ids=["both", "json"])
def test_a_declared_token_in_the_place_of_a_piece(tmp_path: Path, tokenizer: Files, where: str) -> None:
    """tokenizers would give it another id, and texts would lose the piece."""
    folder = gemma(both(tokenizer, add(3000, "<min_0>", where=(where,)))).write(tmp_path)
    with pytest.raises(InvalidInput, match=rf"tokenizer.json: id 3000 is 'cupen', but '<min_0>' in {where}; they must"):
        described(folder)


def test_tokens_that_tokenizer_json_lacks(tmp_path: Path) -> None:
    tokenizer = both(BPE.tokenizer, add(N_BPE, *NEW, where=("tokenizer_config.json",)))
    folder = replace(BPE, tokenizer=tokenizer, config=BPE.config | {"vocab_size": N_BPE + 8}).write(tmp_path)
    with pytest.raises(
        InvalidInput, match=r"tokenizer_config.json: token 1463 is '<min_0>', which tokenizer.json lacks"
    ):
        described(folder)


def test_more_rows_than_tokens_stay_padding(tmp_path: Path) -> None:
    tokens = next(kv.value for kv in described(gemma(BOTH, N_NANO + 2).write(tmp_path)) if kv.key.endswith("ml.tokens"))
    assert tokens[N_NANO:] == ("[PAD4096]", "[PAD4097]")
