"""Everything about text: token ids, special tokens, the chat template. Asked first, collected when it is answered."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..checkpoint.gguf import GGUFFile
from ..checkpoint.types import KV
from ..errors import BorealisError
from ..pipeline.layout import lay_out
from ..pipeline.plan import Model
from ..runtime.template import ChatTemplate
from .asked import Asked, Child
from .cut_vocabulary import cut_vocabulary
from .own import read_gaps
from .report import Finding, Section, failures_first, spelled
from .theirs import Rendering, Theirs, render, rendered

TEMPLATE_KEY = "tokenizer.chat_template"
TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<turn|>")
TURN_STARTS = ("<start_of_turn>", "<|im_start|>", "<|start_header_id|>", "<|turn>")
KINDS = ("bos", "eos")
INSTALL = "pip install tokenizers"
SPACE = "▁"
"""What SentencePiece writes for a space: in a text of itself it comes back as one."""


@dataclass(frozen=True, slots=True)
class Excuse:
    """What no GGUF can say (`text`; empty where ids agree), and the ids there are without it, if that could be asked:
    `ids` of the lines, and `chats`, those of conversations by name."""

    text: str = ""
    ids: Sequence[Sequence[int]] = ()
    chats: Mapping[str, Sequence[int]] = field(default_factory=dict)


class Words:
    """One GGUF's answers about text beside those of the checkpoint it was made of (`theirs`), or of nobody (None)."""

    def __init__(
        self,
        path: str,
        header: GGUFFile,
        expected: Sequence[KV],
        theirs: Theirs | None,
        lines: Sequence[str],
        *,
        quick: bool = False,
        child: Child | None = None,
    ) -> None:
        """`expected` is the source's metadata, `lines` are those that `theirs` was asked. Nothing is waited for here.

        quick: llama.cpp loads as much of the vocabulary as the texts need (see `cut`). child: one to ask that has been
        started for it.
        """
        self.path, self.header, self.checkpoint, self.lines = path, header, theirs, lines
        self.own = theirs.own if theirs else None
        self.expected = {kv.key: kv.value for kv in expected}
        self.tokens: Sequence[str] = header.value("tokenizer.ggml.tokens", ())
        self.asked_ids = self._special_ids()
        self.theirs = theirs.renderings if theirs else render(None)
        same = theirs and self._template() == theirs.own.template
        self.ours = self.theirs if same else render(self._template())
        self._stack, self._less = ExitStack(), False
        self._gguf = self._ask_cut(child) if quick else self._ask(child)

    def _ask_cut(self, child: Child | None) -> Asked:
        cut = cut_vocabulary(self.header.kv, self._texts(), self.asked_ids)
        if cut is None:
            return self._ask(child)
        try:
            path = Path(self._stack.enter_context(TemporaryDirectory(prefix="borealis-gguf-"))) / "vocabulary.gguf"
            path.write_bytes(lay_out(path, Model(tuple(cut.entries), ()), ()).header)
        except OSError:  # no room for temporary files
            return self._ask(child)
        self._less = True
        return self._ask(child, vocabulary=str(path), ids=cut.ids)

    def _ask(self, child: Child | None = None, **how: Any) -> Asked:
        request = {"gguf": self.path, "texts": self._texts(), "ask": self.asked_ids, **how}
        asked = Asked(request, f"llama.cpp read the vocabulary of {self.path}", child)
        self._stack.callback(asked.close)
        return asked

    def _ask_whole(self) -> bool:
        """Ask again whoever was asked less than the whole; False where nobody was."""
        ours, theirs = self._less, bool(self.checkpoint and self.checkpoint.quick)
        if ours:
            self._less, self._gguf = False, self._ask()
        if theirs and self.checkpoint:
            self.checkpoint.ask_whole()
        return ours or theirs

    def _texts(self) -> list[str]:
        return [*self.lines, *rendered(self.ours).values()]

    def close(self) -> None:
        """End what is still under way."""
        self._stack.close()
        if self.checkpoint:
            self.checkpoint.close()

    def sections(self) -> tuple[Section, ...]:
        """Token ids, special tokens and chat template; waits for the answers.

        Where less than the whole was asked, the whole has the last word on what is wrong.
        """
        if self._differ():
            self._ask_whole()
        sections = self._sections()
        failed = any(finding.status == "failed" for section in sections for finding in section.findings)
        return self._sections() if failed and self._ask_whole() else sections

    def _differ(self) -> bool:
        """Whether the lines have other ids here and there, which may be the doing of one that was cut."""
        try:
            gguf, own = self._gguf.answer(), self.checkpoint.answer() if self.checkpoint else {}
        except BorealisError:
            return False
        n = len(self.lines)
        return "ids" in own and own["ids"][:n] != gguf["ids"][:n]

    def _sections(self) -> tuple[Section, ...]:
        try:
            gguf = self._gguf.answer()
        except BorealisError as error:
            return (Section("token ids", (Finding("failed", "vocabulary", found=str(error)),)),)
        own: dict[str, Any] = {}
        problem = ""
        if self.checkpoint:
            try:
                own = self.checkpoint.answer()
            except BorealisError as error:
                problem = str(error)
        if own.get("missing"):
            own, problem = {}, f"the tokenizers library is not installed ({INSTALL})"
        elif self.own and not self.own.tokenizer:
            problem = "the checkpoint has no tokenizer.json"
        gaps = self._gaps(gguf, own)
        return (self._token_ids(gguf, own, problem, gaps), self._specials(gguf, own), self._chat(gguf, own, gaps))

    def _gaps(self, gguf: Mapping[str, Any], own: Mapping[str, Any]) -> Excuse:
        """What the tokenizer does and no GGUF can say; looked up only where ids differ, or texts if ids are unknown."""
        texts = len(self.lines)
        same = own["ids"][:texts] == gguf["ids"][:texts] if own else self.ours == self.theirs
        if not self.checkpoint or same:
            return Excuse()
        text = read_gaps(self.checkpoint.own, len(self.expected.get("tokenizer.ggml.tokens", self.tokens)))
        return Excuse(text, *self.checkpoint.bare()) if text and own else Excuse(text)

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
        ends = [id for ids in (self.own.ends.values() if self.own else ()) for id in ids]
        marks = {*TURN_ENDS, *TURN_STARTS}
        named = compress(range(len(self.tokens)), map(marks.__contains__, self.tokens))
        ids = [*(self._id(kind) for kind in KINDS), *ends, *named]
        return sorted({id for id in ids if 0 <= id < len(self.tokens)})

    # ---- token ids

    def _token_ids(self, gguf: Mapping[str, Any], own: Mapping[str, Any], problem: str, gaps: Excuse) -> Section:
        n = len(self.lines)
        if own:
            bad = self._differences(own["ids"], gguf["ids"])
            told: list[Finding] = []
            if bad and gaps.text:
                told, bad = self._told(own["ids"], gguf["ids"], gaps)
            rest = ", were it not for that" if told else f", {sum(map(len, gguf['ids'][:n]))} tokens"
            if not bad:
                bad = [Finding("ok", f"{n} texts{rest}")]
            elif len(bad) > 1:
                bad.insert(0, Finding("failed", f"{len(bad)} of {n} texts become other tokens; some of them"))
            return Section("token ids", failures_first([*told, *bad], 6))
        findings = []
        if problem:
            left = "compared are the vocabulary itself (under metadata), and whether texts come back from their ids"
            findings.append(Finding("note", f"not compared: {problem}; {left}"))
        backs = [(t, back) for t, back in zip(self.lines, gguf["back"], strict=False) if SPACE not in t]
        lost = [text for text, back in backs if not back]
        findings += [Finding("failed", "text", spelled(text, 40), "itself, from its ids", "another") for text in lost]
        if not lost:
            findings.append(Finding("ok", f"{len(backs)} texts come back from their ids"))
        return Section("token ids", failures_first(findings, 10))

    def _differences(self, theirs: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]) -> list[Finding]:
        rows = zip(self.lines, theirs, ours, strict=False)
        return [self._line(text, a, b) for text, a, b in rows if a != b]

    def _told(
        self, theirs: Sequence[Sequence[int]], ours: Sequence[Sequence[int]], gaps: Excuse
    ) -> tuple[list[Finding], list[Finding]]:
        """Notes on differences that no GGUF can avoid, and those that are left: ids that are neither the tokenizer's
        nor what is left of them without all that.
        """
        rows = list(zip(self.lines, theirs, ours, gaps.ids, strict=False))
        excused = [self._line(text, a, b) for text, a, b, bare in rows if a != b == bare]
        left = [self._line(text, bare, b) for text, a, b, bare in rows if b not in (a, bare)]
        if not excused:
            return [], left
        what = f"{len(excused)} of {len(self.lines)} texts become other tokens: no GGUF has {gaps.text}"
        return [Finding("note", what), replace(excused[0], status="note")], left

    def _line(self, text: str, theirs: Sequence[int], ours: Sequence[int]) -> Finding:
        at = _first_difference(theirs, ours)
        where = f"text {spelled(text, 40)}, token {at}"
        return Finding("failed", "ids", where, self._spelled(theirs[at:]), self._spelled(ours[at:]))

    def _spelled(self, ids: Sequence[int]) -> str:
        shown = ", ".join(f"{id} {spelled(self._text_of(id), 20)}" for id in ids[:3]) or "the end"
        return shown + (" …" if len(ids) > 3 else "")

    # ---- special tokens

    def _specials(self, gguf: Mapping[str, Any], own: Mapping[str, Any]) -> Section:
        findings = [self._named(kind) for kind in KINDS]
        if own:
            findings.append(self._around(gguf["bos"], own["around"]))
        ends = [(id, source) for source, ids in (self.own.ends if self.own else {}).items() for id in ids]
        ends += [(self._id("eos"), "the GGUF's eos")] if self._id("eos") in self.asked_ids else []
        ends += [(id, "its name") for id in self.asked_ids if self.tokens[id] in TURN_ENDS]
        told: dict[int, list[str]] = {}
        for id, source in ends:
            told.setdefault(id, []).append(source)
        for id, sources in told.items():
            good, what = id in gguf["ends"], f"ends an answer ({', '.join(sources)})"
            findings.append(_outcome(good, what, self._called(id), "generation ends at it", "it goes on"))
        for id in self.asked_ids:
            if self.tokens[id] in TURN_ENDS or self.tokens[id] in TURN_STARTS:
                what = "is a control token, and its name in a message stays text"
                plain = gguf["plain"][self.asked_ids.index(id)]
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
        ours = [] if bos is None else [bos]
        theirs = [id for id in around[:1] if id != self.expected.get("tokenizer.ggml.eos_token_id")]
        sides = [self._called(ids[0]) if ids else "nothing" for ids in (theirs, ours)]
        what = "before every text"
        return Finding("ok", sides[1], what) if ours == theirs else Finding("failed", what, "", *sides)

    def _called(self, id: int) -> str:
        return f"{id} {spelled(self._text_of(id), 40)}"

    # ---- chat template

    def _chat(self, gguf: Mapping[str, Any], own: Mapping[str, Any], gaps: Excuse) -> Section:
        title, has = "chat template", TEMPLATE_KEY in {kv.key for kv in self.header.kv}
        wanted = self.own.template is not None if self.own else has
        if not wanted and not has:
            return Section(title, (Finding("note", "there is none: not a model to chat with"),))
        if wanted != has:
            sides = [("a template" if there else "none") for there in (wanted, has)]
            return Section(title, (Finding("failed", TEMPLATE_KEY, "", *sides),))
        n = len(self.lines)
        our_ids = dict(zip(rendered(self.ours), gguf["ids"][n:], strict=True))
        findings = [self._one_bos(gguf["bos"], our_ids)]
        if self.own:
            their_ids = dict(zip(rendered(self.theirs), own["ids"][n:], strict=True)) if own else {}
            findings += self._conversations(our_ids, their_ids, gaps)
        else:
            findings.append(Finding("note", "not compared: a GGUF is the source; its template is compared as a key"))
        return Section(title, failures_first(findings, 4))

    def _conversations(
        self, our_ids: Mapping[str, list[int]], their_ids: Mapping[str, list[int]], gaps: Excuse
    ) -> list[Finding]:
        """Equal texts, or at least equal tokens: a template may do what no GGUF's tokenizer can. What it cannot do
        either is no fault; then ids must be those without that.
        """
        failed, same, excused, spaces = [], 0, 0, 0
        for name, theirs in self.theirs.items():
            ours = self.ours[name]
            if name in their_ids and their_ids[name] == our_ids.get(name):
                same += ours.text != theirs.text
            elif name in gaps.chats and gaps.chats[name] == our_ids.get(name):
                excused += 1
            elif not their_ids and gaps.text and _letters(ours) == _letters(theirs):
                spaces += ours != theirs
            elif (ours.text, ours.refusal) != (theirs.text, theirs.refusal):
                failed.append(Finding("failed", "rendering", name, *_parted(theirs, ours)))
            elif name in their_ids:
                failed.append(self._line(theirs.text or "", gaps.chats.get(name, their_ids[name]), our_ids[name]))
        told = f"{excused} of {len(self.theirs)} conversations become other tokens: no GGUF has {gaps.text}"
        findings = [Finding("note", told)] * bool(excused)
        told = f"{same} conversations render other text, which is the same tokens"
        findings += [Finding("note", told)] * bool(same)
        told = f"{spaces} conversations render other spaces; without token ids nobody can say whether that is right"
        findings += [Finding("note", told)] * bool(spaces)
        refused = sum(rendering.text is None for rendering in self.theirs.values())
        what = f"{len(self.theirs)} conversations, {refused} of them refused, as by the checkpoint's own template"
        return findings + (failed or [Finding("ok", what)])

    def _one_bos(self, bos: int | None, ids: Mapping[str, list[int]]) -> Finding:
        if bos is None:
            return Finding("note", "no BOS is added to a prompt")
        prompts = {name: [bos, *i] if i[:1] != [bos] else i for name, i in ids.items()}
        bad = next((name for name, i in prompts.items() if i.count(bos) != 1), None)
        if bad is None:
            return Finding("ok", f"exactly one BOS in {len(prompts)} prompts")
        return Finding("failed", "BOS", bad, "1", str(prompts[bad].count(bos)))


def _letters(rendering: Rendering) -> tuple[str, str]:
    """All but the spaces, which templates put where a tokenizer would have put them."""
    return "".join((rendering.text or "").split()), rendering.refusal


def _parted(theirs: Rendering, ours: Rendering) -> tuple[str, str]:
    """Two renderings from a little before where they part."""
    if theirs.text is None or ours.text is None:
        first, second = (r.refusal if r.text is None else spelled(r.text, 60) for r in (theirs, ours))
        return first, second
    a, b = theirs.text, ours.text
    at = _first_difference(a, b)
    start = max(0, at - 20)
    return f"from character {at}: {spelled(a[start : start + 60])}", spelled(b[start : start + 60])


def _first_difference(a: Sequence[Any], b: Sequence[Any]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _outcome(good: bool, what: str, where: str, expected: str, found: str) -> Finding:
    return Finding("ok", what, where) if good else Finding("failed", what, where, expected, found)
