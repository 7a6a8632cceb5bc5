"""The report's section on the chat template: sample conversations rendered and tokenized as the checkpoint does it."""

from collections.abc import Mapping

from ...runtime.prompting.chat_template import TEMPLATE_KEY, Rendering
from ..report import Finding, Section, different_parts, failures_first, spelled
from .worker_answers import TextAnswers

TITLE = "chat template"


def check_chat_template(answers: TextAnswers) -> Section:
    """There is a template where the source has one; it renders every conversation, and as the checkpoint's does."""
    checkpoint = answers.checkpoint
    has_template = answers.vocabulary.header.find(TEMPLATE_KEY) is not None
    expected = checkpoint.template is not None if checkpoint else has_template
    if not expected and not has_template:
        return Section(TITLE, (Finding("note", "there is none: not a model to chat with"),))
    if expected != has_template:
        sides = [("a template" if there else "none") for there in (expected, has_template)]
        return Section(TITLE, (Finding("failed", TEMPLATE_KEY, "", *sides),))
    if problems := {answers.gguf_chats.problem, answers.reference_chats.problem} - {""}:
        return Section(TITLE, tuple(Finding("failed", TEMPLATE_KEY, found=problem) for problem in sorted(problems)))
    gguf_ids, reference_ids = answers.chat_ids()
    findings = [_check_one_bos(answers.gguf["bos"], gguf_ids)]
    if checkpoint:
        findings += _compare_conversations(answers, gguf_ids, reference_ids)
    else:
        findings.append(Finding("note", "not compared: a GGUF is the source; its template is compared as a key"))
    return Section(TITLE, failures_first(findings, 4))


def _compare_conversations(
    answers: TextAnswers, gguf_ids: Mapping[str, list[int]], reference_ids: Mapping[str, list[int]]
) -> list[Finding]:
    """Renderings must be equal texts, or texts of equal ids: a template may do what no GGUF's tokenizer can.

    Where neither can, ids must be those of the reference tokenizer without what a GGUF cannot express.
    """
    gguf, reference, known = answers.gguf_chats, answers.reference_chats, answers.known
    failed, same_ids, excused = [], 0, 0
    for name, expected in reference.by_name.items():
        rendering, ids = gguf.by_name[name], gguf_ids.get(name)
        if name in reference_ids and reference_ids[name] == ids:
            same_ids += rendering.text != expected.text
        elif name in known.chat_ids and known.chat_ids[name] == ids:
            excused += 1
        elif rendering != expected:
            failed.append(Finding("failed", "rendering", name, *_different_renderings(expected, rendering)))
        elif name in reference_ids:
            expected_ids = known.chat_ids.get(name, reference_ids[name])
            failed.append(answers.different_ids(expected.text or "", expected_ids, gguf_ids[name]))
    n = len(reference.by_name)
    what = f"{excused} of {n} conversations become other tokens; a GGUF cannot express {known.description}"
    findings = [Finding("note", what)] * bool(excused)
    what = f"{same_ids} conversations render other text, which is the same tokens"
    findings += [Finding("note", what)] * bool(same_ids)
    what = f"{n} conversations, {n - len(reference.texts)} of them refused, as by the checkpoint's own template"
    return findings + (failed or [Finding("ok", what)])


def _check_one_bos(bos: int | None, ids_by_name: Mapping[str, list[int]]) -> Finding:
    """Every prompt has exactly one BOS, which llama.cpp adds where the template does not."""
    if bos is None:
        return Finding("note", "no BOS is added to a prompt")
    prompts = {name: [bos, *ids] if ids[:1] != [bos] else ids for name, ids in ids_by_name.items()}
    bad = next((name for name, ids in prompts.items() if ids.count(bos) != 1), None)
    if bad is None:
        return Finding("ok", f"exactly one BOS in {len(prompts)} prompts")
    return Finding("failed", "BOS", bad, "1", str(prompts[bad].count(bos)))


def _different_renderings(reference: Rendering, gguf: Rendering) -> tuple[str, str]:
    """Both sides of a conversation that is rendered otherwise, as a finding shows them."""
    if reference.text is None or gguf.text is None:
        first, second = (r.refusal if r.text is None else spelled(r.text, 60) for r in (reference, gguf))
        return first, second
    return different_parts(reference.text, gguf.text)
