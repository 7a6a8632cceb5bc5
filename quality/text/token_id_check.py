"""The report's section on token ids: the sample texts in llama.cpp beside the checkpoint's own tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..report import Finding, Section, failures_first, spelled
from .worker_answers import TextAnswers

SPACE = "▁"
"""What SentencePiece writes for a space: in a text of itself it comes back as one."""


def check_token_ids(answers: TextAnswers) -> Section:
    """Ids must be the reference tokenizer's; without one, texts must come back from their ids."""
    lines, gguf, reference = answers.lines, answers.gguf, answers.reference
    if not reference:
        return Section("token ids", failures_first([*answers.problem, *_round_trips(lines, gguf["round_trips"])], 10))
    n = len(lines)
    notes, wrong = _compare_ids(answers)
    if len(wrong) > 1:
        wrong[0] = replace(wrong[0], what=f"{len(wrong)} of {n} texts become other tokens, here")
    rest = ", apart from that" if notes else f", {sum(map(len, gguf['ids'][:n]))} tokens"
    texts = wrong or [Finding("ok", f"{n} texts{rest}")]
    return Section("token ids", failures_first([*notes, *texts, *_vocabulary_findings(reference)], 8))


def _compare_ids(answers: TextAnswers) -> tuple[list[Finding], list[Finding]]:
    """Notes on differences that no GGUF can avoid, and failures.

    Ids must be the reference tokenizer's, or those of its representable part, without what a GGUF cannot express.
    """
    n, known = len(answers.lines), answers.known
    reference, gguf = answers.reference["ids"][:n], answers.gguf["ids"][:n]
    excused, wrong = list[Finding](), list[Finding]()
    for text, expected, ids, representable in zip(answers.lines, reference, gguf, known.ids or reference, strict=True):
        if expected != ids == representable:
            excused.append(answers.different_ids(text, expected, ids))
        elif ids not in (expected, representable):
            wrong.append(answers.different_ids(text, representable, ids))
    if not excused:
        return [Finding("note", known.problem)] * bool(known.problem), wrong
    what = f"{len(excused)} of {n} texts become other tokens; a GGUF cannot express {known.description}"
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
