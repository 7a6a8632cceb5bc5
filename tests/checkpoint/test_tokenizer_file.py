"""tokenizer.json read as what it usually is, against the general parser: the same values, or the same refusal."""

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
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=30)
LAYOUTS: list[dict[str, Any]] = [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False, "indent": 1}]


def document(pieces: Any, merges: Any) -> dict[str, Any]:
    added = [{"id": 1, "content": "null"}]
    return {"added_tokens": added, "model": {"type": "BPE", "vocab": pieces, "merges": merges}, "decoder": None}


def strictly(path: Path) -> dict[str, Any] | str:
    try:
        return read_json_object(path, limit=MAX_TOKENIZER_JSON)
    except InvalidInput as error:
        return str(error)


def typed(path: Path, *, merges: bool = False) -> dict[str, Any] | str:
    try:
        return read_tokenizer_file(path, merges=merges)
    except InvalidInput as error:
        return str(error)


def less_merges(value: dict[str, Any] | str) -> dict[str, Any] | str:
    """Merges that were not asked for may be there or not."""
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        value["model"].pop("merges", None)
    return value


def with_pairs(value: dict[str, Any] | str) -> dict[str, Any] | str:
    """Every merge as the pair that it means."""
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        merges = value["model"].get("merges")
        value["model"]["merges"] = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    return value


@given(pieces=PIECES, pairs=PAIRS, old=st.booleans(), layout=st.sampled_from(LAYOUTS))
def test_merges_are_pairs_in_both_dialects(
    tmp_path_factory: pytest.TempPathFactory, pieces: dict[str, int], pairs: Any, old: bool, layout: dict[str, Any]
) -> None:
    merges = [" ".join(pair) for pair in pairs] if old else pairs
    path = tmp_path_factory.mktemp("merges") / "tokenizer.json"
    path.write_bytes(json.dumps(document(pieces, merges), **layout).encode("utf-8", "surrogatepass"))
    assert with_pairs(typed(path, merges=True)) == with_pairs(strictly(path))


@given(pieces=PIECES, pairs=PAIRS, layout=st.sampled_from(LAYOUTS))
def test_what_is_read_is_what_the_strict_parser_reads(
    tmp_path_factory: pytest.TempPathFactory, pieces: dict[str, int], pairs: Any, layout: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("parts") / "tokenizer.json"
    path.write_bytes(json.dumps(document(pieces, pairs), **layout).encode("utf-8", "surrogatepass"))
    assert less_merges(typed(path)) == less_merges(strictly(path))


MODEL = '"model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}'


@pytest.mark.parametrize(
    "text",
    [
        f"{{{MODEL}}}",
        '{"model": {"vocab": {"a": 0, "b": 1, "a": 2}, "merges": []}}',
        '{"model": {"vocab": {"a": 0, "\\"": 1, "\\u0022": 2}, "merges": []}}',
        '{"model": {"vocab": {"a": 1.0, "b": 1e2, "c": true, "d": -1}, "merges": []}}',
        '{"model": {"vocab": {"a": 01}, "merges": []}}',
        '{"model": {"vocab": {"a": 0,}, "merges": []}}',
        '{"model": {"vocab": {"\\ud800": 0}, "merges": []}}',
        '{"model": {"vocab": {"a\n": 0}, "merges": []}}',
        '{"model": {"vocab": {"a": NaN}, "merges": []}}',
        '{"model": {"vocab": null, "merges": null}}',
        '{"model": {"vocab": {}, "merges": []}, "added_tokens": []}',
        '{"added_tokens": [], "before": {}, "text": "{}", "model": {"vocab": {}, "merges": []}}',
        '{"model": {"vocab": [["a", -1.0]], "merges": []}}',
        '{"model": {"type": "WordLevel", "vocab": {"a": 0}}}',
        '{"model": null}',
        '{"model": [1]}',
        "{}",
        "[]",
        "",
        f"{{{MODEL}}} x",
        f"{{{MODEL}",
        '{"model": {"vocab": {"a": 0}, "merges": []}, "deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [NaN]}',
        '{"model": {"vocab": {"a": 0}, "merges": []}, "n": 1e999}',
    ],
)
def test_the_strict_parser_has_the_last_word(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    assert less_merges(typed(path)) == less_merges(strictly(path))
    path.write_bytes(text.encode().replace(b'"a"', b'"\xff"'))
    assert less_merges(typed(path)) == less_merges(strictly(path))


def test_of_a_repeated_key_the_last_one_counts_but_no_piece_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"vocab": {"a": 0}, "vocab": {"b": 0}, "merges": []}, "x": 1, "x": 2}', encoding="utf-8")
    assert read_tokenizer_file(path) == {"model": {"vocab": {"b": 0}, "merges": []}, "x": 2}
    path.write_text('{"model": {"vocab": {"a": 0, "\\\\": 1, "a": 2}, "merges": []}}', encoding="utf-8")
    with pytest.raises(InvalidInput, match="the key 'a' occurs twice"):
        read_tokenizer_file(path)


def test_merges_are_there_where_they_are_asked_for() -> None:
    path = NANO / "tokenizer.json"
    found = read_tokenizer_file(path)
    assert len(found["model"]["merges"]) > 1000
    assert with_pairs(found) == with_pairs(read_json_object(path, limit=MAX_TOKENIZER_JSON))
    assert "merges" not in read_tokenizer_file(path, merges=False)["model"]


def test_a_vocabulary_of_more_values_than_any_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_file, "MAX_TOKENIZER_JSON", 2000)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document({str(n): n for n in range(150)}, [])), encoding="utf-8")
    with pytest.raises(InvalidInput, match="JSON values; no checkpoint has that many"):
        read_tokenizer_file(path, merges=False)
