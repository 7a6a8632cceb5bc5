"""The report's section on token ids: the sample texts in llama.cpp beside the checkpoint's own tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..report import Finding, Section, failures_first, first_difference, spelled
from .gguf_vocabulary import GGUFVocabulary
from .known_differences import KnownDifferences

SPACE = "▁"
"""What SentencePiece writes for a space: in a text of itself it comes back as one."""


def check_token_ids(
    vocabulary: GGUFVocabulary,
    lines: Sequence[str],
    gguf: Mapping[str, Any],
    reference: Mapping[str, Any],
    problem: Sequence[Finding],
    known: KnownDifferences,
) -> Section:
    """`gguf` and `reference` are the workers' answers; without the latter, texts must come back from their ids."""
    if not reference:
        return Section("token ids", failures_first([*problem, *_round_trips(lines, gguf["round_trips"])], 10))
    n = len(lines)
    notes, wrong = _compare_ids(vocabulary, lines, reference["ids"][:n], gguf["ids"][:n], known)
    if len(wrong) > 1:
        wrong[0] = replace(wrong[0], what=f"{len(wrong)} of {n} texts become other tokens, here")
    rest = ", apart from that" if notes else f", {sum(map(len, gguf['ids'][:n]))} tokens"
    texts = wrong or [Finding("ok", f"{n} texts{rest}")]
    return Section("token ids", failures_first([*notes, *texts, *_vocabulary_findings(reference)], 8))


def different_ids(vocabulary: GGUFVocabulary, text: str, reference: Sequence[int], gguf: Sequence[int]) -> Finding:
    """The failed finding for a text whose ids differ, from the first different one on."""
    at = first_difference(reference, gguf)
    where = f"text {spelled(text, 40)}, token {at}"
    return Finding("failed", "ids", where, vocabulary.labels(reference[at:]), vocabulary.labels(gguf[at:]))


def _compare_ids(
    vocabulary: GGUFVocabulary,
    lines: Sequence[str],
    reference: Sequence[Sequence[int]],
    gguf: Sequence[Sequence[int]],
    known: KnownDifferences,
) -> tuple[list[Finding], list[Finding]]:
    """Notes on differences that no GGUF can avoid, and failures.

    Ids must be those of the checkpoint's tokenizer, or those that it gives without what a GGUF cannot express.
    """
    rows = list(zip(lines, reference, gguf, known.ids or reference, strict=True))
    excused = [
        different_ids(vocabulary, text, expected, ids)
        for text, expected, ids, representable in rows
        if expected != ids == representable
    ]
    wrong = [
        different_ids(vocabulary, text, representable, ids)
        for text, expected, ids, representable in rows
        if ids not in (expected, representable)
    ]
    if not excused:
        return [Finding("note", known.problem)] * bool(known.problem), wrong
    what = f"{len(excused)} of {len(lines)} texts become other tokens; a GGUF cannot express {known.description}"
    return [Finding("note", what), replace(excused[0], status="note")], wrong


def _round_trips(lines: Sequence[str], round_trips: Sequence[bool]) -> list[Finding]:
    rows = [(text, good) for text, good in zip(lines, round_trips, strict=False) if SPACE not in text]
    lost = [text for text, good in rows if not good]
    if lost:
        return [Finding("failed", "text", spelled(text, 40), "itself, from its ids", "another") for text in lost]
    return [Finding("ok", f"{len(rows)} texts come back from their ids")]


def _vocabulary_findings(reference: Mapping[str, Any]) -> list[Finding]:
    """Every token's text, and the merges, against the tokenizer's own, if they were compared."""
    names = ", ".join(f"{spelled(text, 20)} {id}" for text, id in list(reference["renumbered"].items())[:3])
    what = (
        f"the tokenizers library gives added tokens other ids than tokenizer.json states ({names}), which is followed"
    )
    notes = [Finding("note", what)] * bool(names)
    if "vocabulary" not in reference:
        return notes
    parity = reference["vocabulary"]
    failed = [
        Finding("failed", "token", str(id), spelled(expected, 40), spelled(text, 40))
        for id, expected, text in parity["examples"]
    ]
    if parity["different"] > len(failed):
        failed.insert(0, Finding("failed", f"{parity['different']} tokens have other texts; some of them"))
    if parity["lost"]:
        names = ", ".join(f"{id} {spelled(text, 20)}" for id, text in parity["lost_examples"])
        failed.append(Finding("failed", f"{parity['lost']} tokens of the tokenizer have no place in the GGUF", names))
    failed += [Finding("failed", f"merges: {fault}") for fault in reference["merges"]]
    good = Finding("ok", f"{parity['tokens']} tokens have the tokenizer's texts, joined in the same order")
    return notes + (failed or [good])
