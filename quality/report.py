"""The report of a check: findings in sections as plain data, and how they are shown as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "failed", "note"]
MARKS: dict[Status, str] = {"ok": "✓", "failed": "✗", "note": "·"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. A note is neither good nor bad: it could not be checked, or is good to know.

    `what` was checked `where` (a tensor, a key, a line; may be empty); `expected` is what the source has, `found` what
    the GGUF has.
    """

    status: Status
    what: str
    where: str = ""
    expected: str = ""
    found: str = ""

    @property
    def line(self) -> str:
        """In one line: what, where, what was expected and what was found."""
        head = ": ".join(part for part in (self.where, self.what) if part)
        sides = [f"expected {self.expected}"] if self.expected else []
        sides += [f"found {self.found}" if self.expected else self.found] if self.found else []
        return f"{head}: {'; '.join(sides)}" if sides else head


@dataclass(frozen=True, slots=True)
class Section:
    """Findings on one subject."""

    title: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not any(finding.status == "failed" for finding in self.findings)

    @property
    def checked(self) -> bool:
        """Whether anything was checked; a section of notes alone says why it was not."""
        return any(finding.status != "note" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check. `quick` means that weights were sampled and lines few; `seconds` is what it took."""

    path: Path
    against: str
    quick: bool
    sections: tuple[Section, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(section.ok for section in self.sections)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """All failed findings, in the order in which they were checked."""
        return tuple(f for section in self.sections for f in section.findings if f.status == "failed")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """All notes."""
        return tuple(f for section in self.sections for f in section.findings if f.status == "note")

    @property
    def verdict(self) -> str:
        """In one line: the sections that agree, or the first failure."""
        form = "quick check" if self.quick else "check"
        if self.ok:
            titles = ", ".join(section.title for section in self.sections if section.checked)
            return f"{form} of {self.path.name}: {titles} agree with {self.against} ({self.seconds:.1f} s)"
        first, *others = self.failures
        more = f" (and {len(others)} more)" if others else ""
        return f"{form} of {self.path.name} failed: {first.line}{more}"


def as_text(report: Report) -> str:
    """As text for people: a line for every finding, the verdict last."""
    lines = [f"{report.path} against {report.against}", ""]
    for section in report.sections:
        mark: Status = "failed" if not section.ok else "ok" if section.checked else "note"
        lines.append(f"{MARKS[mark]} {section.title}")
        lines += [f"    {MARKS[finding.status]} {finding.line}" for finding in section.findings]
    mark = "ok" if report.ok else "failed"
    return "\n".join([*lines, "", f"{MARKS[mark]} {report.verdict}"])


def as_json(report: Report) -> str:
    """As JSON for programs: the dataclasses' fields, and `ok`."""
    return json.dumps({**asdict(report), "path": str(report.path), "ok": report.ok}, ensure_ascii=False)


def spelled(text: str, limit: int = 60) -> str:
    """Untrusted text in one line: letters as they are, line breaks and invisible characters escaped."""
    return repr(text[:limit]) + ("…" if len(text) > limit else "")


def failures_first(findings: Sequence[Finding], most: int = 20) -> tuple[Finding, ...]:
    """Failures before the other findings, and at most `most` of them."""
    failed = [f for f in findings if f.status == "failed"]
    rest = [f for f in findings if f.status != "failed"]
    if len(failed) > most:
        failed = [*failed[:most], Finding("failed", f"{len(failed) - most} more of the kind")]
    return (*failed, *rest)


def first_difference(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The first index at which `a` and `b` differ, which may be where one of them ends."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def different_parts(expected: str, found: str) -> tuple[str, str]:
    """Two long texts from a little before the character where they begin to differ."""
    at = first_difference(expected, found)
    start = max(0, at - 20)
    return f"from character {at}: {spelled(expected[start : start + 60])}", spelled(found[start : start + 60])
