"""Known differences: what no GGUF can express is a note that counts texts, and any other difference is a fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import BorealisError, Report, api
from borealis_gguf.convert.tokenizers.byte_level_bpe import LETTER_OF_BYTE
from borealis_gguf.convert.tokenizers.pre_tokenizer import QWEN2
from borealis_gguf.quality.report import as_text

from ..helpers.checkpoints import NANO, Files, Miniature, config, nano_tokenizer, write_json
from ..helpers.families import Family, byte_level, qwen2_shapes, split
from ..helpers.gguf_faults import set_item, with_metadata

FLAGS = {"special": False, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
PLAIN_EOS = "'</s>' as ordinary text: llama.cpp takes a token of such a name for a control token"


def space_pieces(folder: Path) -> None:
    """nano's tokenizer.json with `▁▁` as an added token, too, as Gemma 3 declares its runs of spaces."""
    nano_tokenizer("tokenizer_config.json", "chat_template.jinja")(folder)
    value = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = value["model"]["vocab"]
    id = vocabulary.setdefault("▁▁", len(vocabulary))
    if ["▁", "▁"] not in value["model"]["merges"]:
        value["model"]["merges"].insert(0, ["▁", "▁"])
    value["added_tokens"].append({"id": id, "content": "▁▁", **FLAGS})
    write_json(folder / "tokenizer.json", value)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"][str(id)] = {"content": "▁▁", **FLAGS}
    write_json(folder / "tokenizer_config.json", settings)


def nano_with(**changes: dict[str, Any]) -> Files:
    """nano's tokenizer.json, whose added tokens of these names are changed, or are made of its pieces."""

    def write(folder: Path) -> None:
        nano_tokenizer("tokenizer_config.json", "chat_template.jinja")(folder)
        value = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
        added = {token["content"]: token for token in value["added_tokens"]}
        for text, change in changes.items():
            id = value["model"]["vocab"][text]
            added[text] = {"id": id, "content": text, **FLAGS, **added.get(text, {}), **change}
        write_json(folder / "tokenizer.json", value | {"added_tokens": list(added.values())})
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["added_tokens_decoder"] = {str(token["id"]): token for token in added.values()}
        write_json(folder / "tokenizer_config.json", settings)

    return write


def qwen_like(holes: bool) -> dict[str, Any]:
    """Qwen 2's way of splitting over single bytes and "he", with `</s>` as a piece that is no added token. With
    `holes`, ids are left free for the added tokens before the last piece, so that `tokenizers` numbers them anew."""
    vocabulary = {chr(LETTER_OF_BYTE[byte]): byte for byte in range(256)} | {"</s>": 256}
    vocabulary["he"] = 260 if holes else 257
    first = 257 if holes else 258
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    added = [{"id": first + n, "content": text, **FLAGS, "special": True} for n, text in enumerate(names)]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(QWEN2), byte_level()]},
        "post_processor": None,
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [["h", "e"]],
        },
    }


def qwen(folder: Path, holes: bool) -> Path:
    def tokenizer(path: Path) -> None:
        value = qwen_like(holes)
        write_json(path / "tokenizer.json", value)
        write_json(path / "tokenizer_config.json", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})

    settings = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 272,
        "eos_token_id": 259 if holes else 260,
    }
    return Family("qwen", settings, tokenizer=tokenizer, shapes=qwen2_shapes).write(folder)


def ids(report: Report) -> list[str]:
    (section,) = [section for section in report.sections if section.title == "token ids"]
    return [f"{finding.status} {finding.line}" for finding in section.findings]


def test_a_literal_space_piece(tmp_path: Path) -> None:
    """Gemma 3: the quick check has no note, the whole check has one that counts texts, and neither hides a fault."""
    miniature = Miniature("gemma", config(vocab_size=4160), tokenizer=space_pieces)
    checkpoint = miniature.write(tmp_path)
    reports: list[Report] = []
    plan = api.plan_convert(checkpoint, tmp_path / "good.gguf")
    api.execute([plan], on_report=reports.append)
    assert not reports[0].notes
    report = api.check(plan.path, checkpoint)
    assert report.ok, as_text(report)
    note = "note 1 of 54 texts become other tokens; a GGUF cannot express the character ▁ (U+2581) in a text, which is"
    assert ids(report)[0] == f"{note} read as a space"
    assert ids(report)[2] == "ok 54 texts, apart from that"
    bad = with_metadata(plan.path, tmp_path / "bad.gguf", set_item("tokenizer.ggml.tokens", 300, "\ue123"))
    report = api.check(bad, checkpoint)
    assert any(line.startswith("failed 300: token: expected ") for line in ids(report)), as_text(report)


@pytest.mark.parametrize(
    ("changes", "described"),
    [
        ({"▁hei": {}}, "added tokens that hold ▁ ('\\u2581hei'), which llama.cpp looks for as spaces"),
        ({"er": {"single_word": True}}, "'er' only as whole words"),
        ({"<start_of_turn>": {"single_word": True}}, "'<start_of_turn>' only as whole words"),
    ],
)
def test_added_tokens_in_ordinary_text(tmp_path: Path, changes: dict[str, Any], described: str) -> None:
    """The last one is in conversations alone."""
    checkpoint = Miniature("gemma", config(), tokenizer=nano_with(**changes)).write(tmp_path)
    plan = api.plan_convert(checkpoint, tmp_path / "good.gguf")
    api.execute([plan])
    report = api.check(plan.path, checkpoint)
    assert report.ok and f"become other tokens; a GGUF cannot express {described}\n" in f"{as_text(report)}\n"
    bad = with_metadata(plan.path, tmp_path / "bad.gguf", set_item("tokenizer.ggml.tokens", 300, "\ue123"))
    assert not api.check(bad, checkpoint).ok


@pytest.mark.parametrize("holes", [False, True])
def test_a_piece_with_the_name_of_a_control_token(tmp_path: Path, holes: bool) -> None:
    """Qwen 2; and where `tokenizers` numbers added tokens otherwise than the file says, a note says so."""
    checkpoint = qwen(tmp_path, holes)
    reports: list[Report] = []
    plan = api.plan_convert(checkpoint, tmp_path / "good.gguf")
    api.execute([plan], on_report=reports.append)
    for report in (reports[0], api.check(plan.path, checkpoint)):
        assert report.ok, as_text(report)
        assert f"texts become other tokens; a GGUF cannot express NFC; {PLAIN_EOS}" in ids(report)[0]
        renumbered = [line for line in ids(report) if "other ids than tokenizer.json" in line]
        assert len(renumbered) == holes
        assert not holes or "'<|endoftext|>' 257, '<|im_start|>' 258, '<|im_end|>' 259" in renumbered[0]


def test_a_known_difference_excuses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF that joins nothing: some lines differ for reasons that are known, the rest does not pass with them."""
    checkpoint = qwen(tmp_path, holes=False)
    monkeypatch.setattr("borealis_gguf.convert.tokenizers.byte_level_bpe._merges", lambda *_: ("e h",))
    with pytest.raises(
        BorealisError,
        match=r"bad\.gguf failed: text '.*, token \d+: \d+ of 53 texts become other tokens, here: expected \d",
    ):
        api.execute([api.plan_convert(checkpoint, tmp_path / "bad.gguf")])
