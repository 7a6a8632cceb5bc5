"""Hostile model folders and files, each with the command that meets it and what that must say: rows of docs/threats.md.

A builder writes into an empty folder and gives the command's arguments.
"""

import json
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import attacks as a
from .checkpoints import Miniature, config, write_json
from .sentencepiece_models import model, pieces

Arguments = list[str | Path]
Build = Callable[[Path], Arguments]
Change = Callable[[Path], object]
GOOD = Miniature("model", config())
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Hostile:
    """One input: how it is made, a regular expression for the error, and the command's exit code."""

    build: Build
    says: str
    code: int = 2


def checkpoint(change: Change, good: Miniature = GOOD) -> Build:
    """`convert` of a miniature that went through `change`."""

    def build(folder: Path) -> Arguments:
        path = good.write(folder)
        change(path)
        return ["convert", path, "-o", folder / "out.gguf"]

    return build


def put(name: str, data: bytes) -> Change:
    return lambda path: (path / name).write_bytes(data)


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Change a JSON file."""

    def edited(path: Path) -> None:
        value = json.loads((path / name).read_text(encoding="utf-8"))
        change(value)
        write_json(path / name, value)

    return edited


def setting(name: str, **values: Any) -> Change:
    return edit(name, lambda value: value.update(values))


def several(*changes: Change) -> Change:
    def every(path: Path) -> None:
        for change in changes:
            change(path)

    return every


def gguf(data: bytes, *command: str, last: tuple[str, ...] = ()) -> Build:
    """A command whose last argument is a GGUF."""

    def build(folder: Path) -> Arguments:
        (folder / "evil.gguf").write_bytes(data)
        return [*command, folder / "evil.gguf", *last]

    return build


# ---- safetensors


def with_weight(value: float) -> Change:
    """One weight of the embedding is `value`."""

    def change(path: Path) -> None:
        with (path / "model.safetensors").open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            file.seek(8 + length + 1000)
            file.write(struct.pack("<f", value)[2:])  # BF16

    return change


def without_data(name: str) -> Change:
    """A tensor of no rows, at an offset that others share: legal, but nothing a model can use."""

    def change(path: Path) -> None:
        data = (path / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        del header["__metadata__"]
        at = header[name]["data_offsets"]
        header[name] = {"dtype": "BF16", "shape": [0], "data_offsets": [at[0], at[0]]}
        gap = at[1] - at[0]
        for other in header.values():
            if other["data_offsets"][0] >= at[1]:
                other["data_offsets"] = [offset - gap for offset in other["data_offsets"]]
        body = data[8 + length :]
        (path / "model.safetensors").write_bytes(a.safetensors(header, body[: at[0]] + body[at[1] :]))

    return change


def many_entries(path: Path) -> None:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    entries = ",".join(f'"t{index}":{entry}' for index in range(1_000_000))
    (path / "model.safetensors").write_bytes(a.safetensors("{" + entries + "}"))


SAFETENSORS = {
    name: Hostile(checkpoint(put("model.safetensors", data)), "quantized to FP8" if name == "dtype F8" else says)
    for name, (data, says) in a.SAFETENSORS.items()
} | {
    "a million entries": Hostile(checkpoint(many_entries), "over the limit"),
    "a tensor without data": Hostile(checkpoint(without_data("model.norm.weight")), "model.norm.weight: .* are empty"),
    "NaN": Hostile(checkpoint(with_weight(float("nan"))), "is NaN or Inf", code=1),
    "infinity": Hostile(checkpoint(with_weight(float("inf"))), "is NaN or Inf", code=1),
}

# ---- index

SHARDED = Miniature("model", config(), shards=2)


def index(change: Callable[[dict[str, str]], object]) -> Build:
    return checkpoint(edit(INDEX, lambda value: change(value["weight_map"])), SHARDED)


def shard_of_the_norm(name: str) -> Hostile:
    change = index(lambda weights: weights.update({"model.norm.weight": name}))
    return Hostile(change, "a shard is the plain name of a .safetensors file")


def move_outside(name: str) -> Change:
    """The file lies beside the checkpoint, and a link in the checkpoint leads to it."""

    def change(path: Path) -> None:
        outside = path.parent / "outside"
        outside.mkdir()
        (path / name).rename(outside / name)
        (path / name).symlink_to(outside / name)

    return change


def twice(path: Path) -> None:
    """A tensor of the second shard lies in the first one too."""
    data = bytes(128)
    header = {"model.norm.weight": {"dtype": "BF16", "shape": [64], "data_offsets": [0, 128]}}
    (path / ONE).write_bytes(a.safetensors(header, data))


def exchange_shards(weights: dict[str, str]) -> None:
    weights.update({name: TWO if shard == ONE else ONE for name, shard in weights.items()})


INDEXES = {
    "a folder above": shard_of_the_norm("../model.safetensors"),
    "an absolute path": shard_of_the_norm("/etc/model.safetensors"),
    "a drive letter": shard_of_the_norm("C:\\model.safetensors"),
    "a URL": shard_of_the_norm("https://example.org/model.safetensors"),
    "a tensor in another shard": Hostile(index(exchange_shards), "is mapped to .*, but lies"),
    "a tensor in two shards": Hostile(checkpoint(twice, SHARDED), "also lies in|does not hold it"),
    "a missing shard": Hostile(checkpoint(lambda path: (path / TWO).unlink(), SHARDED), "missing, though"),
    "a tensor that is not listed": Hostile(index(lambda w: w.pop("model.norm.weight")), "does not list"),
    "no list of tensors": Hostile(checkpoint(put(INDEX, b"{}"), SHARDED), "weight_map must map"),
}

if sys.platform != "win32":  # where only administrators make links
    INDEXES |= {
        f"a link for {name}": Hostile(checkpoint(move_outside(name)), "a link out of the checkpoint")
        for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja")
    }

# ---- config.json


def configured(says: str, **values: Any) -> Hostile:
    return Hostile(checkpoint(setting("config.json", **values)), says)


def raw_setting(text: str) -> Change:
    """config.json with a value of num_hidden_layers that Python's json would not write."""

    def change(path: Path) -> None:
        whole = (path / "config.json").read_text(encoding="utf-8")
        (path / "config.json").write_text(whole.replace('"num_hidden_layers": 1', f'"num_hidden_layers": {text}'))

    return change


def imports(path: Path) -> None:
    """A class of the checkpoint's own, as `trust_remote_code` would import it."""
    (path / "evil.py").write_text(f"open({str(path / 'imported')!r}, 'w')\n", encoding="utf-8")
    setting("config.json", architectures=["EvilForCausalLM"], auto_map={"AutoConfig": "evil.Config"})(path)


CONFIGS = {
    "code of its own": Hostile(checkpoint(imports), "'EvilForCausalLM' is not known"),
    "no layers": configured("num_hidden_layers is 0", num_hidden_layers=0),
    "negative layers": configured("num_hidden_layers is -1", num_hidden_layers=-1),
    "a billion layers": configured("1000000000 layers|num_hidden_layers is 1000000000", num_hidden_layers=10**9),
    "a string": configured("num_hidden_layers is '1'", num_hidden_layers="1"),
    "a bool": configured("num_hidden_layers is True", num_hidden_layers=True),
    "1e400": Hostile(checkpoint(raw_setting("1e400")), "num_hidden_layers is inf"),
    "a number of 100000 digits": Hostile(checkpoint(raw_setting("9" * 100_000)), "too large"),
    "depth 100000": Hostile(checkpoint(put("config.json", b'{"a":' * 100_000)), "nested too deeply"),
    "9 MB": Hostile(checkpoint(put("config.json", b" " * (9 << 20))), "8388608 is the most"),
    "other heads than the tensors": configured("but config.json makes it", num_key_value_heads=4),
    "more rows than the embedding": configured("vocab_size is 4097", vocab_size=4097),
    "a window of 0": configured("sliding_window is 0", sliding_window=0),
    "an unknown rope scaling": configured("rope_type|'other'", rope_scaling={"rope_type": "other", "factor": 2.0}),
    "untied without a head": configured("there is no lm_head", tie_word_embeddings=False),
    "a duplicate key": Hostile(checkpoint(put("config.json", b'{"a": 1, "a": 2}')), "the key 'a' occurs twice"),
    "bad sampling": Hostile(checkpoint(put("generation_config.json", b'{"temperature": NaN}')), "temperature is .nan"),
}

# ---- tokenizer


def bpe(change: Callable[[dict[str, Any]], object]) -> Build:
    """`convert` of a checkpoint whose vocabulary stands in tokenizer.json alone."""
    return checkpoint(
        several(lambda path: (path / "tokenizer.model").unlink(), edit("tokenizer.json", change)),
        Miniature("model", config(vocab_size=4100)),
    )


def vocabulary(value: dict[str, Any]) -> dict[str, Any]:
    return value["model"]["vocab"]


def sentencepiece(*extra: tuple[str, float, int]) -> Change:
    return lambda path: (path / "tokenizer.model").write_bytes(model([*pieces(("er", "en")), *extra]))


def no_eos(path: Path) -> None:
    (path / "tokenizer.json").unlink()
    setting("config.json", eos_token_id=1 << 40)(path)
    setting("tokenizer_config.json", eos_token=None)(path)


REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
TOKENIZERS = {
    "a gap": Hostile(bpe(lambda t: vocabulary(t).update({"🜁🜂": 4099})), "no token has the id 4096"),
    "an id twice": Hostile(bpe(lambda t: vocabulary(t).update({"nytt": 300})), "taken"),
    "a negative id": Hostile(bpe(lambda t: vocabulary(t).update({"nytt": -2})), "out of range"),
    "an id that is text": Hostile(bpe(lambda t: vocabulary(t).update({"nytt": "8"})), "out of range|no id"),
    "a merge of unknown pieces": Hostile(bpe(lambda t: t["model"]["merges"].append(["qqq", "q"])), "unknown pieces"),
    "a regular expression": Hostile(bpe(lambda t: t.update(pre_tokenizer=REGEX)), "splits the text"),
    "depth 100000": Hostile(checkpoint(put("tokenizer.json", b'{"a":' + b"[" * 100_000)), "nested too deeply"),
    "a token of 70000 bytes": Hostile(bpe(lambda t: vocabulary(t).update({"x" * 70_000: 4096})), "70000 bytes"),
    "a piece twice": Hostile(checkpoint(sentencepiece(("er", 0.0, 1))), "'er'"),
    "a piece of 70000 bytes": Hostile(checkpoint(sentencepiece(("x" * 70_000, 0.0, 1))), "70000 bytes"),
    "a score of NaN": Hostile(checkpoint(sentencepiece(("new", float("nan"), 1))), "score nan"),
    "a truncated model": Hostile(checkpoint(put("tokenizer.model", b"\x0a\x05\x0a\x0ahello")), "not a SentencePiece"),
    "a lying length": Hostile(checkpoint(put("tokenizer.model", b"\x0a" + b"\xff" * 9 + b"\x01x")), "byte"),
    "an end out of range": Hostile(checkpoint(no_eos), "eos_token_id"),
    "a padding that tokenizers cannot read": Hostile(
        checkpoint(edit("tokenizer.json", lambda t: t.update(padding={"strategy": "x"}))),
        "padding.strategy is 'x'; it must be BatchLongest or Fixed",
    ),
    "lists in the place of ids": Hostile(
        checkpoint(edit("tokenizer.json", lambda t: t["model"]["vocab"].update({"Hei": [1]}))),
        "Hei",
    ),
    "an end of turn that is text": Hostile(
        checkpoint(edit("tokenizer_config.json", lambda t: t["added_tokens_decoder"]["5"].update(special=False))),
        "not a control token",
    ),
}

# ---- GGUF


def complete(*kvs: bytes, tokens: int = 4, blocks: int = 2) -> bytes:
    """A GGUF whose header is well-formed, and whose metadata say too much or too little of its tensors."""
    names = b"".join(a.string(f"t{index}") for index in range(tokens))
    infos = [a.info("token_embd.weight", [8, 4], a.T_F32, 0)]
    infos += [a.info(f"blk.{bid}.attn_norm.weight", [8], a.T_F32, 128 + 32 * bid) for bid in range(blocks)]
    count = a.kv("gemma3.block_count", a.U32, a.u32(2))
    tokens_kv = a.array("tokenizer.ggml.tokens", a.STRING, tokens, names)
    return a.gguf([a.ARCH, count, tokens_kv, *kvs], infos, bytes(128 + 32 * blocks))


CONTRADICTIONS = {
    "scores too short": (complete(a.array("tokenizer.ggml.scores", a.F32, 3, bytes(12))), "3 items for 4 tokens"),
    "scores of another type": (complete(a.array("tokenizer.ggml.scores", a.F64, 4, bytes(32))), "scores is FLOAT64"),
    "an end out of range": (complete(a.kv("tokenizer.ggml.eos_token_id", a.U32, a.u32(9))), "eos_token_id is UINT32 9"),
    "more rows than tokens": (complete(tokens=3), "tokens has 3 items"),
    "more blocks than block_count": (complete(blocks=3), "block_count is 2"),
    "a shard of two": (complete(a.kv("split.count", a.U16, struct.pack("<H", 2))), "split"),
}
COMMANDS = ((("inspect",), ()), (("quantize", "Q8_0", "-m"), ()))
NO_GGUF = ("empty file", "other magic")
"""What `quantize` cannot know to have been meant as a GGUF."""

GGUFS = {
    f"{name}, {command[0]}": Hostile(gguf(data, *command, last=last), says)
    for command, last in COMMANDS
    for name, (data, says) in a.GGUF.items()
    if name not in NO_GGUF or command[0] == "inspect"
}
GGUFS |= {name: Hostile(gguf(data, "quantize", "Q8_0", "-m"), says) for name, (data, says) in CONTRADICTIONS.items()}
GGUFS |= {
    f"{name}, {command[0]}": Hostile(gguf(a.GGUF[name][0], *command, last=last), a.GGUF[name][1])
    for command, last in ((("run",), ("Hei",)), (("modelfile",), ()), (("chat",), ()))
    for name in ("empty file", "2^63 keys", "array of 2^64 - 1", "5 dimensions", "past the end")
}

# ---- names of repositories, and texts for a Modelfile: nothing is asked of the network

NAMES = {
    name: Hostile(lambda _, name=name: ["convert", name], says)
    for name, says in (
        ("org/a..b", "no name has '--' or '..'"),
        ("org/a--b", "no name has '--' or '..'"),
        ("org/x.git", "ends in .git"),
        ("org/" + "x" * 93, "97 characters; 96 is the most"),
        ("org/x@../main", "is not a revision"),
        ("https://huggingface.co/a/b/tree/main", "it has the form"),
        ("https://user:hf_SecretSecretSecretSecretSecretSe@huggingface.co/a/b", "https://user:hf_…@huggingface"),
    )
}

KINDS = {
    "safetensors": SAFETENSORS,
    "index": INDEXES,
    "config": CONFIGS,
    "tokenizer": TOKENIZERS,
    "gguf": GGUFS,
    "names": NAMES,
}
