"""JSON that Python's json writes: numbers of any size, NaN, infinities, a byte order mark."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.strict_json import parse_object, read_json_object
from borealis_gguf.convert.describe import describe, describe_vision
from borealis_gguf.errors import InvalidInput

from ..helpers import families
from ..helpers.checkpoints import Miniature, config, image_token, preparation, wrapped, write_json

UNLIMITED = 1000000000000000019884624838656
"""What transformers writes as model_max_length of a tokenizer without one: int(1e30)."""

HUGE = 10**400
"""An integer that no float can hold; JSON's 1e400 is an infinite float."""

VISION = Miniature(
    "vision",
    wrapped(config(vocab_size=4160), bos_token_id=2, eos_token_id=1),
    tokenizer=image_token,
    wrap=("language_model.model.", "language_model.lm_head"),
    vision=("vision_tower.vision_model.", "multi_modal_projector."),
    files={"preprocessor_config.json": preparation(56, 4)},
)


def read(folder: Path, text: bytes) -> dict[str, Any]:
    (folder / "a.json").write_bytes(text)
    return read_json_object(folder / "a.json")


def change(folder: Path, file: str, *keys: str, value: Any) -> None:
    """Set a value in a JSON file; keys lead to it."""
    whole = json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).exists() else {}
    part = whole
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    write_json(folder / file, whole)


def test_numbers_that_python_writes(tmp_path: Path) -> None:
    found = read(tmp_path, b'{"a": 1000000000000000019884624838656, "b": [1e400, -1e400, -Infinity], "c": NaN}')
    assert found["a"] == UNLIMITED and found["b"] == [math.inf, -math.inf, -math.inf] and math.isnan(found["c"])
    assert read(tmp_path, b'{"a": -' + b"1" * 4300 + b"}") == {"a": -int("1" * 4300)}


def test_a_byte_order_mark(tmp_path: Path) -> None:
    assert read(tmp_path, b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    with pytest.raises(InvalidInput, match="not valid JSON"):
        read(tmp_path, b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}')


def test_time_is_bounded(tmp_path: Path) -> None:
    began = time.monotonic()
    for digits in (4301, 5_000_000):
        with pytest.raises(InvalidInput, match=r"a.json: not valid JSON: the number '1{30}'… is too large"):
            read(tmp_path, b'{"a": ' + b"1" * digits + b"}")
    assert read(tmp_path, b'{"a": ' + b"1" * 5_000_000 + b".5}") == {"a": math.inf}
    assert read(tmp_path, b'{"a": [' + b",".join([b"1" * 4300] * 1900) + b"]}")["a"][0] == int("1" * 4300)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "1" * 21], ids=lambda text: text[:9])
def test_strict_json_has_none_of_these(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"is not JSON|is too large"):
        parse_object(f'{{"a": {text}}}'.encode(), "header", strict=True)
    with pytest.raises(InvalidInput, match="BOM"):
        parse_object(b"\xef\xbb\xbf{}", "header", strict=True)


def test_a_tokenizer_without_a_length_limit(tmp_path: Path) -> None:
    """The same GGUF as without that entry."""
    folder = Miniature("m", config()).write(tmp_path)
    expected = describe(open_checkpoint(folder), "auto")[0].kv
    for value in (UNLIMITED, 1e30, HUGE, math.inf, math.nan):
        change(folder, "tokenizer_config.json", "model_max_length", value=value)
        assert describe(open_checkpoint(folder), "auto")[0].kv == expected


def test_every_file_may_hold_them_where_they_are_not_used(tmp_path: Path) -> None:
    folder = VISION.write(tmp_path)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"):
        change(folder, name, "unused", value=[math.nan, math.inf, HUGE, {"x": -math.inf}])
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    checkpoint = open_checkpoint(folder)
    describe(checkpoint, "auto")
    describe_vision(checkpoint, "f16")


def refused(folder: Path, file: str, key: str, *, vision: bool = False) -> None:
    """The one-line error names file and field."""
    with pytest.raises(InvalidInput) as caught:
        (describe_vision if vision else describe)(open_checkpoint(folder), "auto")
    message = str(caught.value)
    assert message.startswith(str(folder)) and file in message and f"{key} is " in message, message
    assert "\n" not in message and len(message) < 400, message


VALUES = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, HUGE, -HUGE], ids=lambda v: f"{v}"[:5])


@VALUES
@pytest.mark.parametrize(
    "key",
    (
        *("num_hidden_layers", "hidden_size", "vocab_size", "rms_norm_eps", "rope_theta", "rope_local_base_freq"),
        *("sliding_window", "max_position_embeddings", "query_pre_attn_scalar", "final_logit_softcapping"),
        "eos_token_id",
    ),
)
def test_fields_of_gemma_3(tmp_path: Path, key: str, value: float) -> None:
    folder = Miniature("m", config()).write(tmp_path)
    if key == "eos_token_id":  # the configuration counts where the tokenizer's files name none
        change(folder, "tokenizer_config.json", "eos_token", value=None)
    change(folder, "config.json", key, value=value)
    refused(folder, "config.json", key)


@VALUES
@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings", "beta_fast"])
def test_fields_of_rope_scaling(tmp_path: Path, key: str, value: float) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192} | {key: value}
    folder = Miniature("m", config(rope_scaling=scaling)).write(tmp_path)
    refused(folder, "config.json", key)


@VALUES
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"])
def test_fields_of_a_llama(tmp_path: Path, key: str, value: float) -> None:
    folder = next(f for f in families.FAMILIES if f.name == "llama-biased-mini").write(tmp_path)
    change(folder, "config.json", key, value=value)
    refused(folder, "config.json", key)


@VALUES
def test_fields_of_the_vision_side(tmp_path: Path, value: float) -> None:
    folder = VISION.write(tmp_path)
    for file, *keys in (
        ("config.json", "vision_config", "layer_norm_eps"),
        ("config.json", "vision_config", "num_hidden_layers"),
        ("preprocessor_config.json", "rescale_factor"),
        ("preprocessor_config.json", "image_mean"),
    ):
        before = (folder / file).read_bytes()
        change(folder, file, *keys, value=[0.5, 0.5, value] if keys[-1] == "image_mean" else value)
        refused(folder, file, keys[-1], vision=True)
        (folder / file).write_bytes(before)


@VALUES
@pytest.mark.parametrize("key", ["temperature", "top_p", "top_k"])
def test_fields_of_sampling(tmp_path: Path, key: str, value: float) -> None:
    folder = Miniature("m", config()).write(tmp_path)
    change(folder, "generation_config.json", key, value=value)
    refused(folder, "generation_config.json", key)


def test_an_index_with_a_total_size_of_any_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Miniature("m", config(), shards=2).write(tmp_path)
    for value in (math.nan, math.inf, HUGE):
        change(folder, "model.safetensors.index.json", "metadata", "total_size", value=value)
        caplog.clear()
        assert open_checkpoint(folder).tensors and "total_size is" in caplog.text
