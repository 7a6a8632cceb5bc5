"""One check reads each header once, and runs nothing of a model's own in the app's process."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import BorealisError, api
from borealis_gguf.checkpoint import folder
from borealis_gguf.quality.report import as_text
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate

ENDLESS = """{%- set r = range(1000) -%}
{%- for a in r -%}{%- for b in r -%}{%- for c in r -%}{%- for d in r -%}
{%- endfor -%}{%- endfor -%}{%- endfor -%}{%- endfor -%}"""
"""10¹² steps within the sandbox's bounds: it counts the lengths of ranges, not the rounds of loops."""

ENDS = r"while the chat template of .* was rendered, no answer came within 3 s"


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

    monkeypatch.setattr(Path, "open", counted)
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

    monkeypatch.setattr(ChatTemplate, "render", refuse)
    report = api.check(nano_q8, nano, quick=True)
    assert report.ok, as_text(report)


def test_a_template_that_never_ends_fails_the_check(
    tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Path(shutil.copytree(nano, tmp_path / "endless"))
    (checkpoint / "chat_template.jinja").write_text(ENDLESS, encoding="utf-8")
    monkeypatch.setattr("borealis_gguf.quality.check_worker_client.TIME_LIMIT", 3.0)
    (plan,) = api.plan_quantize(checkpoint, ["Q8_0"], tmp_path)
    with pytest.raises(BorealisError, match=rf"^quick check of .* failed: tokenizer.chat_template: {ENDS}; nothing"):
        api.execute([plan])
    assert not plan.path.exists()
    api.execute([plan], check=False)
    report = api.check(plan.path, checkpoint, quick=True)
    (section,) = [section for section in report.sections if not section.ok]
    assert section.title == "chat template" and len(section.findings) == 1
    assert report.seconds < 60
