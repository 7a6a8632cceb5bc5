"""What a GGUF does with text: token ids, special tokens, the chat template."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

from ...checkpoint.gguf import GGUFFile
from ...checkpoint.types import KV
from ...errors import BorealisError
from ...runtime.prompting.chat_template import ChatTemplate
from ..check_worker_client import TIME_LIMIT, PendingRequest
from ..report import Finding, Section, failures_first, spelled
from .checkpoint_text import CheckpointText
from .template_renderings import Rendering, render, rendered

TEMPLATE_KEY = "tokenizer.chat_template"
TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<turn|>")
TURN_STARTS = ("<start_of_turn>", "<|im_start|>", "<|start_header_id|>", "<|turn>")
KINDS = ("bos", "eos")
TEXT_TYPES = (1, 4)
"""Types of tokens that are text: normal ones and user-defined ones."""
COMPARED_WITHOUT = "compared are the vocabulary itself (under metadata), and whether texts come back from their ids"
SPACE = "▁"
"""What SentencePiece writes for a space: in a text of itself it comes back as one."""


@dataclass(frozen=True, slots=True)
class KnownDifferences:
    """What a GGUF cannot express (`text`; empty where ids agree or nothing is known), and the ids that the checkpoint's
    tokenizer gives without it: `ids` of the lines, and `chats`, those of conversations by name. `problem`: why that
    could not be found out."""

    text: str = ""
    problem: str = ""
    ids: Sequence[Sequence[int]] = ()
    chats: Mapping[str, Sequence[int]] = field(default_factory=dict)


class TextCheck:
    """What one GGUF does with text beside what the checkpoint does that it was made of (None: a GGUF was the source).

    Both vocabularies are loaded whole, each in a worker process, from the moment this is made; `sections` waits for
    them, and `close` ends them.
    """

    def __init__(
        self,
        path: Path,
        header: GGUFFile,
        expected: Sequence[KV],
        checkpoint: CheckpointText | None,
        lines: Sequence[str],
        *,
        quick: bool = False,
    ) -> None:
        """`expected` is the source's metadata. quick: the tokenizer's merges are not compared one by one."""
        self.path, self.header, self.checkpoint, self.lines = path, header, checkpoint, lines
        self.expected = {kv.key: kv.value for kv in expected}
        self.tokens: Sequence[str] = header.value("tokenizer.ggml.tokens", ())
        self.special_ids = self._special_ids()
        template, own = self._template(), checkpoint.template if checkpoint else None
        self.reference_chats = render(own)
        self.gguf_chats = self.reference_chats if template == own else render(template)
        self._stack = ExitStack()
        request: dict[str, Any] = {"gguf": str(path), "texts": self._texts(self.gguf_chats), "ask": self.special_ids}
        request |= {"ordinary": self._ordinary_ids()}
        self._gguf = self._request("tokenize_gguf", f"llama.cpp read the vocabulary of {path}", **request)
        self._reference = None
        if checkpoint and checkpoint.tokenizer:
            request = {"gguf": str(path), "texts": self._texts(self.reference_chats), "quick": quick}
            special = {self.tokens[id]: id for id in self.special_ids}
            request |= {"tokenizer": str(checkpoint.tokenizer), "special": special}
            self._reference = self._request("tokenize_reference", f"tokenizers read {checkpoint.tokenizer}", **request)

    def _request(self, task: str, what: str, **arguments: Any) -> PendingRequest:
        pending = PendingRequest({"task": task, **arguments}, what, TIME_LIMIT)
        self._stack.callback(pending.close)
        return pending

    def _texts(self, chats: Mapping[str, Rendering]) -> list[str]:
        return [*self.lines, *rendered(chats).values()]

    def close(self) -> None:
        """End what is still under way."""
        self._stack.close()

    def sections(self) -> tuple[Section, ...]:
        """Token ids, special tokens and chat template."""
        try:
            gguf = self._gguf.result()
        except BorealisError as error:
            return (Section("token ids", (Finding("failed", "vocabulary", found=str(error)),)),)
        reference: dict[str, Any] = {}
        problem: list[Finding] = []
        if self._reference:
            try:
                reference = self._reference.result()
            except BorealisError as error:
                problem = [Finding("failed", f"not compared: {error}")]
        elif self.checkpoint:
            problem = [Finding("note", f"not compared: the checkpoint has no tokenizer.json; {COMPARED_WITHOUT}")]
        known = self._known_differences(gguf, reference)
        return (
            self._token_ids(gguf, reference, problem, known),
            self._specials(gguf, reference),
            self._chat(gguf, reference, known),
        )

    def _known_differences(self, gguf: Mapping[str, Any], reference: Mapping[str, Any]) -> KnownDifferences:
        """Looked up only where the ids of texts differ: it takes as long as all the rest."""
        if not reference or not self.checkpoint or reference["ids"] == gguf["ids"]:
            return KnownDifferences()
        tokenizer, chats = str(self.checkpoint.tokenizer), rendered(self.reference_chats)
        request: dict[str, Any] = {"tokenizer": tokenizer, "texts": list(self.lines), "chats": list(chats.values())}
        request |= {"whole": reference["ids"], "control": gguf["retyped"], "n_vocab": len(self.tokens)}
        try:
            found = self._request(
                "tokenize_representable", f"tokenizers read a part of {tokenizer}", **request
            ).result()
        except BorealisError as error:
            return KnownDifferences(problem=str(error))
        return KnownDifferences(
            "; ".join(found["gaps"]), ids=found["ids"], chats=dict(zip(chats, found["chats"], strict=True))
        )

    def _template(self) -> ChatTemplate | None:
        source = self.header.value(TEMPLATE_KEY)
        if not isinstance(source, str) or not source:
            return None
        return ChatTemplate(source, *(self._text_of(self._id(kind)) for kind in KINDS))

    def _id(self, kind: str) -> int:
        id = self.header.value(f"tokenizer.ggml.{kind}_token_id", -1)
        return id if isinstance(id, int) else -1

    def _text_of(self, id: int) -> str:
        return self.tokens[id] if 0 <= id < len(self.tokens) else ""

    def _special_ids(self) -> list[int]:
        """Ids of tokens that must have a role: what names them, then what they are called."""
        ends = [id for ids in (self.checkpoint.ends.values() if self.checkpoint else ()) for id in ids]
        marks = {*TURN_ENDS, *TURN_STARTS}
        named = compress(range(len(self.tokens)), map(marks.__contains__, self.tokens))
        ids = [*(self._id(kind) for kind in KINDS), *ends, *named]
        return sorted({id for id in ids if 0 <= id < len(self.tokens)})

    def _ordinary_ids(self) -> list[int]:
        """Ids of text tokens whose names llama.cpp may take for those of control tokens."""
        types: Sequence[int] = self.header.value("tokenizer.ggml.token_type", ())
        rows = enumerate(zip(self.tokens, types, strict=False))
        return [id for id, (text, type) in rows if type in TEXT_TYPES and "<" in text]

    # ---- token ids

    def _token_ids(
        self, gguf: Mapping[str, Any], reference: Mapping[str, Any], problem: list[Finding], known: KnownDifferences
    ) -> Section:
        if not reference:
            return Section("token ids", failures_first([*problem, *self._round_trips(gguf["back"])], 10))
        n = len(self.lines)
        told, wrong = self._compare_ids(reference["ids"], gguf["ids"], known)
        if len(wrong) > 1:
            wrong[0] = replace(wrong[0], what=f"{len(wrong)} of {n} texts become other tokens, here")
        rest = ", apart from that" if told else f", {sum(map(len, gguf['ids'][:n]))} tokens"
        texts = wrong or [Finding("ok", f"{n} texts{rest}")]
        return Section("token ids", failures_first([*told, *texts, *_vocabulary(reference)], 8))

    def _compare_ids(
        self, reference: Sequence[Sequence[int]], gguf: Sequence[Sequence[int]], known: KnownDifferences
    ) -> tuple[list[Finding], list[Finding]]:
        """Notes on differences that no GGUF can avoid, and failures: ids that are neither the tokenizer's nor those
        that it gives without what a GGUF cannot express.
        """
        n = len(self.lines)
        rows = list(zip(self.lines, reference[:n], gguf[:n], known.ids or reference[:n], strict=True))
        excused = [self._line(text, a, b) for text, a, b, left in rows if a != b == left]
        wrong = [self._line(text, left, b) for text, a, b, left in rows if b not in (a, left)]
        if not excused:
            return [Finding("note", known.problem)] * bool(known.problem), wrong
        what = f"{len(excused)} of {n} texts become other tokens; a GGUF cannot express {known.text}"
        return [Finding("note", what), replace(excused[0], status="note")], wrong

    def _round_trips(self, back: Sequence[bool]) -> list[Finding]:
        rows = [(text, good) for text, good in zip(self.lines, back, strict=False) if SPACE not in text]
        lost = [text for text, good in rows if not good]
        if lost:
            return [Finding("failed", "text", spelled(text, 40), "itself, from its ids", "another") for text in lost]
        return [Finding("ok", f"{len(rows)} texts come back from their ids")]

    def _line(self, text: str, reference: Sequence[int], gguf: Sequence[int]) -> Finding:
        at = _first_difference(reference, gguf)
        where = f"text {spelled(text, 40)}, token {at}"
        return Finding("failed", "ids", where, self._spelled(reference[at:]), self._spelled(gguf[at:]))

    def _spelled(self, ids: Sequence[int]) -> str:
        shown = ", ".join(f"{id} {spelled(self._text_of(id), 20)}" for id in ids[:3]) or "the end"
        return shown + (" …" if len(ids) > 3 else "")

    # ---- special tokens

    def _specials(self, gguf: Mapping[str, Any], reference: Mapping[str, Any]) -> Section:
        findings = [self._named(kind) for kind in KINDS]
        if reference:
            findings.append(self._around(gguf["bos"], reference["around"]))
        ends = [(id, source) for source, ids in (self.checkpoint.ends if self.checkpoint else {}).items() for id in ids]
        ends += [(self._id("eos"), "the GGUF's eos")] if self._id("eos") in self.special_ids else []
        ends += [(id, "its name") for id in self.special_ids if self.tokens[id] in TURN_ENDS]
        told: dict[int, list[str]] = {}
        for id, source in ends:
            told.setdefault(id, []).append(source)
        for id, sources in told.items():
            good, what = id in gguf["ends"], f"ends an answer ({', '.join(sources)})"
            findings.append(_outcome(good, what, self._called(id), "generation ends at it", "it goes on"))
        for id in self.special_ids:
            if self.tokens[id] in TURN_ENDS or self.tokens[id] in TURN_STARTS:
                what = "is a control token, and its name in a message stays text"
                plain = gguf["plain"][self.special_ids.index(id)]
                good = id in gguf["control"] and id not in plain
                findings.append(_outcome(good, what, self._called(id), "so", "a message can make it"))
        return Section("special tokens", tuple(findings))

    def _named(self, kind: str) -> Finding:
        expected, found = self.expected.get(f"tokenizer.ggml.{kind}_token_id"), self._id(kind)
        sides = [self._called(id) if isinstance(id, int) and id >= 0 else "none" for id in (expected, found)]
        good = (expected if expected is not None else -1) == found
        return Finding("ok", sides[1], kind) if good else Finding("failed", kind, "", *sides)

    def _around(self, bos: int | None, around: Sequence[int]) -> Finding:
        """A text alone gets the tokens in front that the checkpoint's tokenizer puts there."""
        gguf = [] if bos is None else [bos]
        reference = [id for id in around[:1] if id != self.expected.get("tokenizer.ggml.eos_token_id")]
        sides = [self._called(ids[0]) if ids else "nothing" for ids in (reference, gguf)]
        what = "before every text"
        return Finding("ok", sides[1], what) if gguf == reference else Finding("failed", what, "", *sides)

    def _called(self, id: int) -> str:
        return f"{id} {spelled(self._text_of(id), 40)}"

    # ---- chat template

    def _chat(self, gguf: Mapping[str, Any], reference: Mapping[str, Any], known: KnownDifferences) -> Section:
        title, has = "chat template", TEMPLATE_KEY in {kv.key for kv in self.header.kv}
        wanted = self.checkpoint.template is not None if self.checkpoint else has
        if not wanted and not has:
            return Section(title, (Finding("note", "there is none: not a model to chat with"),))
        if wanted != has:
            sides = [("a template" if there else "none") for there in (wanted, has)]
            return Section(title, (Finding("failed", TEMPLATE_KEY, "", *sides),))
        n = len(self.lines)
        gguf_ids = dict(zip(rendered(self.gguf_chats), gguf["ids"][n:], strict=True))
        findings = [self._one_bos(gguf["bos"], gguf_ids)]
        if self.checkpoint:
            chats = rendered(self.reference_chats)
            reference_ids = dict(zip(chats, reference["ids"][n:], strict=True)) if reference else {}
            findings += self._conversations(gguf_ids, reference_ids, known)
        else:
            findings.append(Finding("note", "not compared: a GGUF is the source; its template is compared as a key"))
        return Section(title, failures_first(findings, 4))

    def _conversations(
        self, gguf_ids: Mapping[str, list[int]], reference_ids: Mapping[str, list[int]], known: KnownDifferences
    ) -> list[Finding]:
        """Equal texts, or at least equal tokens: a template may do what no GGUF's tokenizer can. What it cannot do
        either is no fault; then ids must be those without that.
        """
        failed, same, excused = [], 0, 0
        for name, reference in self.reference_chats.items():
            gguf = self.gguf_chats[name]
            if name in reference_ids and reference_ids[name] == gguf_ids.get(name):
                same += gguf.text != reference.text
            elif name in known.chats and known.chats[name] == gguf_ids.get(name):
                excused += 1
            elif (gguf.text, gguf.refusal) != (reference.text, reference.refusal):
                failed.append(Finding("failed", "rendering", name, *_parted(reference, gguf)))
            elif name in reference_ids:
                expected = known.chats.get(name, reference_ids[name])
                failed.append(self._line(reference.text or "", expected, gguf_ids[name]))
        n = len(self.reference_chats)
        told = f"{excused} of {n} conversations become other tokens; a GGUF cannot express {known.text}"
        findings = [Finding("note", told)] * bool(excused)
        told = f"{same} conversations render other text, which is the same tokens"
        findings += [Finding("note", told)] * bool(same)
        refused = sum(rendering.text is None for rendering in self.reference_chats.values())
        what = f"{n} conversations, {refused} of them refused, as by the checkpoint's own template"
        return findings + (failed or [Finding("ok", what)])

    def _one_bos(self, bos: int | None, ids: Mapping[str, list[int]]) -> Finding:
        if bos is None:
            return Finding("note", "no BOS is added to a prompt")
        prompts = {name: [bos, *i] if i[:1] != [bos] else i for name, i in ids.items()}
        bad = next((name for name, i in prompts.items() if i.count(bos) != 1), None)
        if bad is None:
            return Finding("ok", f"exactly one BOS in {len(prompts)} prompts")
        return Finding("failed", "BOS", bad, "1", str(prompts[bad].count(bos)))


def _vocabulary(reference: Mapping[str, Any]) -> list[Finding]:
    """Every token's text, and the merges, against the tokenizer's own, if they were compared."""
    names = ", ".join(f"{spelled(text, 20)} {id}" for text, id in list(reference["renumbered"].items())[:3])
    told = (
        f"the tokenizers library gives added tokens other ids than tokenizer.json states ({names}), which is followed"
    )
    noted = [Finding("note", told)] * bool(names)
    if "vocabulary" not in reference:
        return noted
    found = reference["vocabulary"]
    failed = [
        Finding("failed", "token", str(id), spelled(text, 40), spelled(other, 40))
        for id, text, other in found["examples"]
    ]
    if found["different"] > len(failed):
        failed.insert(0, Finding("failed", f"{found['different']} tokens have other texts; some of them"))
    if found["lost"]:
        names = ", ".join(f"{id} {spelled(text, 20)}" for id, text in found["lost_examples"])
        failed.append(Finding("failed", f"{found['lost']} tokens of the tokenizer have no place in the GGUF", names))
    failed += [Finding("failed", f"merges: {fault}") for fault in reference["merges"]]
    good = Finding("ok", f"{found['tokens']} tokens have the tokenizer's texts, joined in the same order")
    return noted + (failed or [good])


def _parted(reference: Rendering, gguf: Rendering) -> tuple[str, str]:
    """Two renderings from a little before where they part."""
    if reference.text is None or gguf.text is None:
        first, second = (r.refusal if r.text is None else spelled(r.text, 60) for r in (reference, gguf))
        return first, second
    a, b = reference.text, gguf.text
    at = _first_difference(a, b)
    start = max(0, at - 20)
    return f"from character {at}: {spelled(a[start : start + 60])}", spelled(b[start : start + 60])


def _first_difference(a: Sequence[Any], b: Sequence[Any]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _outcome(good: bool, what: str, where: str, expected: str, found: str) -> Finding:
    return Finding("ok", what, where) if good else Finding("failed", what, where, expected, found)
