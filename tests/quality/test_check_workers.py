"""One check reads each header once, and runs nothing of a model's own in the app's process."""

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import BorealisError, api
from borealis_gguf.checkpoint import file_access, folder
from borealis_gguf.quality.report import as_text
from borealis_gguf.quality.text.template_renderings import render_templates
from borealis_gguf.runtime.prompting import template_sandbox
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate

from ..helpers.gguf_faults import set_value, with_metadata
from ..helpers.paths import DATA

ENDLESS = """{%- set r = range(1000) -%}
{%- for a in r -%}{%- for b in r -%}{%- for c in r -%}{%- for d in r -%}
{%- endfor -%}{%- endfor -%}{%- endfor -%}{%- endfor -%}"""
"""10¹² steps."""

ENDS = r".*: the model's chat template (takes longer than 0\.5 s|needs more than 160 MB) to render: .*"
HOSTILE = sorted((DATA / "hostile_templates").glob("*.jinja"))


@pytest.mark.parametrize("quick", [True, False])
def test_headers_are_read_once(quick: bool, nano: Path, nano_q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read through unbuffered files, everything else through buffered ones. Workers count for themselves."""
    opened: Counter[str] = Counter()
    checkpoints: list[Path] = []
    open_file, read_tensors = Path.open, folder._read_tensors

    def counted(path: Path, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        opened[path.name] += buffering != 0
        return open_file(path, mode, buffering, *args, **kwargs)

    def counted_tensors(path: Path, *args: Any) -> Any:
        checkpoints.append(path)
        return read_tensors(path, *args)

    class CountedFile(file_access._NamedFile):
        def __init__(self, path: Path) -> None:
            opened[path.name] += 1
            super().__init__(path)

    monkeypatch.setattr(Path, "open", counted)
    monkeypatch.setattr(file_access, "_NamedFile", CountedFile)
    monkeypatch.setattr(folder, "_read_tensors", counted_tensors)
    report = api.check(nano_q8, nano, quick=quick)
    assert report.ok, as_text(report)
    assert checkpoints == [nano]
    headers = [name for name in opened if name.endswith((".gguf", ".safetensors", ".index.json"))]
    assert len(headers) == 1 + 3 + 1
    assert {name: opened[name] for name in [*headers, "config.json", "tokenizer.json"]} == dict.fromkeys(
        [*headers, "config.json", "tokenizer.json"], 1
    )


def test_templates_are_rendered_in_workers(nano: Path, nano_q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("rendered in the app's process")

    monkeypatch.setattr(template_sandbox, "render", refuse)
    report = api.check(nano_q8, nano, quick=True)
    assert report.ok, as_text(report)


@pytest.mark.parametrize(("path", "quick"), [*((path, True) for path in HOSTILE), (HOSTILE[4], False)])
def test_hostile_templates_fail_the_check(path: Path, quick: bool, nano: Path, nano_q8: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(nano, tmp_path / "hostile"))
    shutil.copyfile(path, checkpoint / "chat_template.jinja")
    template = set_value("tokenizer.chat_template", path.read_text(encoding="utf-8"))
    bad = with_metadata(nano_q8, tmp_path / "hostile.gguf", template)
    report = api.check(bad, checkpoint, quick=quick)
    (finding,) = report.failures
    assert (finding.what, bool(re.search(ENDS, finding.found))) == ("tokenizer.chat_template", True)


def test_two_hostile_templates_are_not_both_waited_for() -> None:
    templates = ChatTemplate(ENDLESS), ChatTemplate(ENDLESS + " ")
    gguf, reference = render_templates((templates[0], "a.gguf"), (templates[1], "checkpoint"))
    assert gguf.problem == reference.problem and re.match("a.gguf" + ENDS, gguf.problem)


def test_a_template_that_never_ends_fails_the_check(tmp_path: Path, nano: Path) -> None:
    checkpoint = Path(shutil.copytree(nano, tmp_path / "endless"))
    (checkpoint / "chat_template.jinja").write_text(ENDLESS, encoding="utf-8")
    (plan,) = api.plan_quantize(checkpoint, ["Q8_0"], tmp_path)
    with pytest.raises(BorealisError, match=rf"^quick check of .* failed: tokenizer.chat_template: {ENDS}; nothing"):
        api.execute([plan])
    assert not plan.path.exists()
    api.execute([plan], check=False)
    report = api.check(plan.path, checkpoint, quick=True)
    (section,) = [section for section in report.sections if not section.ok]
    assert section.title == "chat template" and len(section.findings) == 1
    assert report.seconds < 60
