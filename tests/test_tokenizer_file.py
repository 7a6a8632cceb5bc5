"""tokenizer.json in parts, against all of it by the strict parser: the same values, or the same refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from borealis_gguf import InvalidInput
from borealis_gguf.checkpoint import tokenizer_file
from borealis_gguf.checkpoint.jsonfile import MAX_TOKENIZER_JSON, read_json_object
from borealis_gguf.checkpoint.tokenizer_file import Unusual, in_parts, read_tokenizer_file

from .conftest import NANO

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


def ours(path: Path) -> dict[str, Any] | str:
    try:
        return read_tokenizer_file(path, merges=False)
    except InvalidInput as error:
        return str(error)


def less_merges(value: dict[str, Any] | str) -> dict[str, Any] | str:
    """Merges that nobody asked for may be there or not."""
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        value["model"].pop("merges", None)
    return value


@given(
    pieces=PIECES,
    pairs=PAIRS,
    old=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    window=st.sampled_from([0, 7, 40, 1 << 18]),
)
def test_parts_are_the_whole(
    pieces: dict[str, int], pairs: list[tuple[str, str]], old: bool, layout: dict[str, Any], window: int
) -> None:
    pairs = [pair for pair in pairs if not (old and " " in pair[0])]
    merges = [" ".join(pair) for pair in pairs] if old else pairs
    text = json.dumps(document(pieces, merges), **layout).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_file, "WINDOW", window)
        try:
            file = in_parts(text)
            found = {piece: id for some in file.pieces() for piece, id in some.items()}
            made = [pair for some in file.pairs() for pair in some]
        except Unusual:  # taken apart in the middle of an item
            assert window < len(text)
            return
    assert found == pieces and list(found) == list(pieces) and made == pairs
    assert file.rest == document(None, None)


@given(pieces=PIECES, pairs=PAIRS, layout=st.sampled_from(LAYOUTS))
def test_what_is_read_is_what_the_strict_parser_reads(
    tmp_path_factory: pytest.TempPathFactory, pieces: dict[str, int], pairs: Any, layout: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("parts") / "tokenizer.json"
    path.write_bytes(json.dumps(document(pieces, pairs), **layout).encode("utf-8", "surrogatepass"))
    assert less_merges(ours(path)) == less_merges(strictly(path))


@given(
    pieces=st.lists(TEXT, min_size=1, max_size=30, unique=True),
    other=st.none() | st.tuples(st.integers(0, 29), st.integers(0, 30) | TEXT),
    window=st.sampled_from([0, 7, 40, 1 << 18]),
)
def test_a_vocabulary_that_is_known_may_be_left_out_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], other: tuple[int, int | str] | None, window: int
) -> None:
    vocabulary: dict[str, int] = dict(zip(pieces, range(len(pieces)), strict=True))
    if other and isinstance(other[1], int):  # an id
        vocabulary[pieces[other[0] % len(pieces)]] = other[1]
    elif other:  # or a piece, which may be one that was there
        at = other[0] % len(pieces)
        vocabulary = {str(other[1]) if id == at else piece: id for piece, id in vocabulary.items()}
    path = tmp_path_factory.mktemp("known") / "tokenizer.json"
    path.write_bytes(json.dumps(document(vocabulary, [])).encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_file, "WINDOW", window)
        found, whole = read_tokenizer_file(path, merges=False, pieces=pieces), read_json_object(path)
    same = list(vocabulary.items()) == list(zip(pieces, range(len(pieces)), strict=True))
    if "vocab" in found["model"]:
        assert less_merges(found) == less_merges(whole)
        assert not same or window < 1 << 18  # taken apart in the middle of an item
    else:
        assert same
        assert {**found, "model": None} == {**whole, "model": None}


@pytest.mark.parametrize(
    "vocabulary",
    [
        '{"a": 0, "b": 1, "b": 2}',
        '{"a": 0, "b": 0, "b": 1, "c": 2}',
        '{"a": 0, "b": 1, "c": 2, "d": 3}',
        '{"a": 0, "b": 1}',
        '{"b": 1, "a": 0, "c": 2}',
        '{"a": 0, "b": 1, "c": 3}',
    ],
)
def test_what_is_not_quite_the_known_vocabulary_is_read(tmp_path: Path, vocabulary: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(f'{{"model": {{"vocab": {vocabulary}, "merges": []}}}}', encoding="utf-8")

    def known() -> dict[str, Any] | str:
        try:
            return read_tokenizer_file(path, merges=False, pieces=("a", "b", "c"))
        except InvalidInput as error:
            return str(error)

    assert less_merges(known()) == less_merges(strictly(path))


MODEL = '"model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}'


@pytest.mark.parametrize(
    "text",
    [
        f"{{{MODEL}}}",
        f"{{{MODEL}, {MODEL}}}",
        '{"model": {"vocab": {"a": 0}, "vocab": {"a": 0}, "merges": []}}',
        '{"model": {"vocab": {"a": 0}, "merges": [], "merges": []}}',
        '{"model": {"vocab": {"a": 0, "b": 1, "a": 2}, "merges": []}}',
        '{"model": {"vocab": {"a": 0, "\\"": 1, "\\u0022": 2}, "merges": []}}',
        '{"model": {"vocab": {"a": 1.0, "b": 1e2, "c": true, "d": -1}, "merges": []}}',
        '{"model": {"vocab": {"a": 123456789012345678901234567890}, "merges": []}}',
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
        '{"model": {"vocab": {"a": 0}, "merges": []}, "a": 1, "a": 2}',
        '{"model": {"vocab": {"a": 0}, "merges": []}, "n": 1e999}',
    ],
)
def test_the_strict_parser_has_the_last_word(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    assert less_merges(ours(path)) == less_merges(strictly(path))
    path.write_bytes(text.encode().replace(b'"a"', b'"\xff"'))
    assert less_merges(ours(path)) == less_merges(strictly(path))


def test_merges_are_there_where_they_are_asked_for() -> None:
    path = NANO / "tokenizer.json"
    assert read_tokenizer_file(path) == read_json_object(path, limit=MAX_TOKENIZER_JSON)
    parts = in_parts(path.read_bytes())
    assert sum(map(len, parts.pieces())) == len(read_tokenizer_file(path, merges=False)["model"]["vocab"]) > 1000


def test_a_vocabulary_of_more_values_than_any_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_file, "MAX_TOKENIZER_JSON", 2000)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document({str(n): n for n in range(150)}, [])), encoding="utf-8")
    with pytest.raises(InvalidInput, match="JSON values; no checkpoint has that many"):
        read_tokenizer_file(path, merges=False)
