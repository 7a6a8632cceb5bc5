"""tokenizer.json is read as strictly as any other JSON file, with merges in one form."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from borealis_gguf import InvalidInput
from borealis_gguf.checkpoint import tokenizer_file
from borealis_gguf.checkpoint.strict_json import MAX_TOKENIZER_JSON, read_json_object
from borealis_gguf.checkpoint.tokenizer_file import read_tokenizer_file

from ..conftest import NANO

TEXT = st.text(max_size=6) | st.sampled_from(
    ['"', "\\", '\\"', '",', "1,", "],", "[", '],["', "{}", "null", "\0", "▁", "ø"]
)
PIECES = st.dictionaries(TEXT, st.integers(0, 2**32 - 1), max_size=30)
PAIRS = st.lists(st.lists(TEXT.filter(lambda text: " " not in text), min_size=2, max_size=2), max_size=30)
LAYOUTS: list[dict[str, Any]] = [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False, "indent": 1}]


def document(pieces: Any, merges: Any) -> dict[str, Any]:
    added = [{"id": 1, "content": "null"}]
    return {"added_tokens": added, "model": {"type": "BPE", "vocab": pieces, "merges": merges}, "decoder": None}


@given(pieces=PIECES, pairs=PAIRS, old=st.booleans(), layout=st.sampled_from(LAYOUTS))
def test_merges_are_pairs_in_both_dialects(
    tmp_path_factory: pytest.TempPathFactory, pieces: dict[str, int], pairs: Any, old: bool, layout: dict[str, Any]
) -> None:
    merges = [" ".join(pair) for pair in pairs] if old else pairs
    path = tmp_path_factory.mktemp("merges") / "tokenizer.json"
    path.write_bytes(json.dumps(document(pieces, merges), **layout).encode("utf-8", "surrogatepass"))
    try:
        found = read_tokenizer_file(path)
    except InvalidInput as error:
        with pytest.raises(InvalidInput) as strict:
            read_json_object(path, limit=MAX_TOKENIZER_JSON)
        assert str(error) == str(strict.value)
    else:
        assert found == document(pieces, pairs)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model": {"vocab": {"a": 0, "b": 1, "a": 2}, "merges": []}}', "the key 'a' occurs twice"),
        ('{"model": {"vocab": {"a": 0, "\\"": 1, "\\u0022": 2}, "merges": []}}', "occurs twice"),
        ('{"model": {"vocab": {"a": 0}, "vocab": {"b": 0}, "merges": []}}', "the key 'vocab' occurs twice"),
        ('{"model": {"vocab": {"a": 01}, "merges": []}}', "not valid JSON"),
        ('{"model": {"vocab": {"a": 0,}, "merges": []}}', "not valid JSON"),
        ("[]", "holds a JSON list, an object is needed"),
        ("", "not valid JSON"),
        ('{"padding": {"strategy": "x"}}', r"padding\.strategy is 'x'; it must be BatchLongest or Fixed"),
        ('{"padding": {"strategy": {"x": 1}}}', r"padding\.strategy is .*; it must be"),
        ('{"padding": {"strategy": ["x"]}}', r"padding\.strategy is .*; it must be"),
        ('{"padding": [1]}', r"padding is '\[1\]'; it must be null or an object"),
        ('{"truncation": {"direction": 3}}', r"truncation\.direction is '3'; it must be Left or Right"),
        ('{"deep": ' + "[" * 100_000 + "]" * 100_000 + "}", "JSON nested too deeply"),
    ],
    ids=range(13),
)
def test_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=words):
        read_tokenizer_file(path)


@pytest.mark.parametrize("text", ['{"model": null}', '{"model": [1]}', "{}", '{"model": {"merges": null}}'])
def test_what_is_no_model_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    assert read_tokenizer_file(path) == json.loads(text)


def test_lengths_that_tokenizers_loads(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    padding = {"strategy": {"Fixed": 512}, "direction": "Left", "pad_id": 0}
    for value in ({"padding": padding}, {"padding": {"strategy": "BatchLongest"}, "truncation": None}):
        path.write_text(json.dumps(value), encoding="utf-8")
        assert read_tokenizer_file(path) == value


def test_the_values_are_the_files() -> None:
    found = read_tokenizer_file(NANO / "tokenizer.json")
    assert len(found["model"]["merges"]) > 1000
    expected = read_json_object(NANO / "tokenizer.json", limit=MAX_TOKENIZER_JSON)
    assert found["model"]["vocab"] == expected["model"]["vocab"]


def test_a_vocabulary_of_more_values_than_any_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_file, "MAX_TOKENIZER_JSON", 2000)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document({str(n): n for n in range(150)}, [])), encoding="utf-8")
    with pytest.raises(InvalidInput, match="JSON values; no checkpoint has that many"):
        read_tokenizer_file(path)
