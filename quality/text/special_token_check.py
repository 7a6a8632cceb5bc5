"""The report's section on special tokens: BOS, EOS, tokens that end an answer, and control tokens in messages."""

from collections.abc import Sequence
from typing import Any

from ..report import Finding, Section
from .gguf_vocabulary import KINDS, TURN_ENDS, TURN_STARTS, GGUFVocabulary
from .worker_answers import TextAnswers


def check_special_tokens(answers: TextAnswers) -> Section:
    """BOS and EOS, the token before every text, tokens that end an answer, and those that begin or end a turn."""
    vocabulary, gguf = answers.vocabulary, answers.gguf
    expected = {kind: answers.source_kv.get(f"tokenizer.ggml.{kind}_token_id") for kind in KINDS}
    findings = [_check_kind(vocabulary, kind, expected[kind]) for kind in KINDS]
    if answers.reference:
        around = answers.reference["around_empty_text"]
        findings.append(_check_prefix(vocabulary, gguf["bos"], around, expected["eos"]))
    for id, sources in _answer_ends(answers).items():
        good, what = id in gguf["ends"], f"ends an answer ({', '.join(sources)})"
        findings.append(_outcome(good, what, vocabulary.label(id), "generation ends at it", "it goes on"))
    for id, name_ids in zip(answers.special_ids, gguf["name_ids"], strict=True):
        if vocabulary.tokens[id] in TURN_ENDS or vocabulary.tokens[id] in TURN_STARTS:
            what = "is a control token, and its name in a message stays text"
            good = id in gguf["control"] and id not in name_ids
            findings.append(_outcome(good, what, vocabulary.label(id), "so", "a message can make it"))
    return Section("special tokens", tuple(findings))


def _answer_ends(answers: TextAnswers) -> dict[int, list[str]]:
    """The ids that must end an answer, and for each of them the files, keys or names that say so."""
    vocabulary, files = answers.vocabulary, answers.checkpoint.ends if answers.checkpoint else {}
    eos = vocabulary.token_id("eos")
    ends = [(id, file) for file, ids in files.items() for id in ids]
    ends += [(eos, "the GGUF's eos")] if eos in answers.special_ids else []
    ends += [(id, "its name") for id in answers.special_ids if vocabulary.tokens[id] in TURN_ENDS]
    sources: dict[int, list[str]] = {}
    for id, source in ends:
        sources.setdefault(id, []).append(source)
    return sources


def _check_kind(vocabulary: GGUFVocabulary, kind: str, expected: Any) -> Finding:
    """BOS or EOS is the one of the source."""
    id = vocabulary.token_id(kind)
    sides = [vocabulary.label(i) if isinstance(i, int) and i >= 0 else "none" for i in (expected, id)]
    good = (expected if expected is not None else -1) == id
    return Finding("ok", sides[1], kind) if good else Finding("failed", kind, "", *sides)


def _check_prefix(vocabulary: GGUFVocabulary, bos: int | None, around: Sequence[int], eos: Any) -> Finding:
    """llama.cpp puts the same token before a text as the checkpoint's tokenizer, which puts `around` around an empty
    one."""
    gguf = [] if bos is None else [bos]
    reference = [id for id in around[:1] if id != eos]
    sides = [vocabulary.label(ids[0]) if ids else "nothing" for ids in (reference, gguf)]
    what = "before every text"
    return Finding("ok", sides[1], what) if gguf == reference else Finding("failed", what, "", *sides)


def _outcome(good: bool, what: str, where: str, expected: str, actual: str) -> Finding:
    return Finding("ok", what, where) if good else Finding("failed", what, where, expected, actual)
