"""Every hostile input at the command line: one line, the right exit code, little time and memory, nothing written."""

import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ..helpers.checkpoints import Miniature, config
from ..helpers.command_limits import run_commands
from ..helpers.gguf_faults import Edit, cut_vocabulary, set_item, set_value, with_metadata
from ..helpers.hostile_input import KINDS, Hostile
from ..helpers.paths import DATA
from .test_cli import run

SECONDS = 2
MEMORY = 256 << 20


def faults(case: Hostile, result: dict[str, Any]) -> list[str]:
    """What is wrong with how a hostile input was met."""
    *before, last = result["stderr"].splitlines() or [""]
    found = {
        f"exit code {result['code']}": result["code"] == case.code,
        f"{result['seconds']} s": result["seconds"] < SECONDS,
        f"it says: {result['stderr'][-1000:]}": last.startswith("Error: ") and re.search(case.says, last),
        f"a long line: {last[:100]}": len(last) < 1000,
        f"more than a line: {before}": all(line.startswith("WARNING: ") for line in before),
        f"output: {result['stdout']}": not result["stdout"],
        f"changed: {result['changed']}": not result["changed"],
        f"network: {result['network']}": not result["network"],
    }
    return [fault for fault, right in found.items() if not right]


def hold(cases: dict[str, Hostile], folder: Path) -> None:
    """Runs the command of every case, and compares what came of it with what was promised."""
    commands = []
    for index, case in enumerate(cases.values()):
        (folder / str(index)).mkdir()
        commands.append([str(part) for part in case.build(folder / str(index))])
    results, peak = run_commands(folder, commands)
    wrong = {name: faults(case, result) for (name, case), result in zip(cases.items(), results, strict=True)}
    assert {name: found for name, found in wrong.items() if found} == {}
    assert peak < MEMORY, f"{peak >> 20} MiB"


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_within_limits_and_nothing_written(kind: str, tmp_path: Path) -> None:
    hold(KINDS[kind], tmp_path)


# ---- files that need a whole model

TOKENS = "tokenizer.ggml.tokens"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in (DATA / "hostile_templates").glob("*.jinja")}
CHECKED = "quick check of out.gguf failed: .* (takes longer than 0.5 s|needs more than 160 MB) .* nothing was kept"
CODE = "{{ cycler.__init__.__globals__.os.popen('id').read() }}"


def short(key: str) -> Edit:
    def edit(kv: dict[str, Any]) -> None:
        kv[key] = replace(kv[key], value=kv[key].value[:100])

    return edit


EDITS: dict[str, tuple[Edit, tuple[str, ...], str, int]] = {
    "scores too short": (short("tokenizer.ggml.scores"), ("Hei",), "llama.cpp cannot load it: .* scores", 1),
    "types too short": (short("tokenizer.ggml.token_type"), ("Hei",), "llama.cpp cannot load it: .* toktypes", 1),
    "tokens too short": (cut_vocabulary, ("Hei",), "llama.cpp cannot load it: .* wrong shape", 1),
    "a token twice": (set_item(TOKENS, 1000, "er"), ("Hei",), "tokens has 'er' twice", 2),
    "too many blocks": (set_value("gemma3.block_count", 7), ("Hei",), "llama.cpp cannot load it: .*blk.6", 1),
    "2^31 blocks": (set_value("gemma3.block_count", 1 << 31), ("Hei",), "2147483648 blocks of 80 tensors cannot be", 2),
    "no context": (set_value("gemma3.context_length", 0), ("Hei",), "this model can have 1 to 0", 2),
    "an escape": (set_value("general.architecture", "\x1b[31mevil"), ("Hei",), r"evil\.block_count is missing", 2),
    "a template that runs code": (set_value("tokenizer.chat_template", CODE), ("Hei",), "is unsafe", 2),
}


def test_a_gguf_that_contradicts_itself_is_one_line(nano_q8: Path, tmp_path: Path) -> None:
    def build(edit: Edit, rest: tuple[str, ...], folder: Path) -> list[str | Path]:
        return ["run", with_metadata(nano_q8, folder / "evil.gguf", edit), *rest]

    hold(
        {
            name: Hostile(lambda folder, edit=edit, rest=rest: build(edit, rest, folder), says, code)
            for name, (edit, rest, says, code) in EDITS.items()
        },
        tmp_path,
    )


def test_a_hostile_template_is_one_line(nano_q8: Path, tmp_path: Path) -> None:
    """In a GGUF, for `modelfile`. In a checkpoint: `convert` writes it down, its check renders it, nothing is kept."""
    templates = TEMPLATES | {"code": CODE, "syntax": "{% if %}"}

    def in_gguf(source: str, folder: Path) -> list[str | Path]:
        return ["modelfile", with_metadata(nano_q8, folder / "a.gguf", set_value("tokenizer.chat_template", source))]

    def in_checkpoint(source: str, folder: Path) -> list[str | Path]:
        path = Miniature("model", config()).write(folder)
        (path / "chat_template.jinja").write_text(source, encoding="utf-8")
        return ["convert", path, "-o", folder / "out.gguf"]

    cases = {
        f"{name}, modelfile": Hostile(lambda folder, s=source: in_gguf(s, folder), "the model's chat template ")
        for name, source in templates.items()
    } | {
        f"{name}, convert": Hostile(lambda folder, s=source: in_checkpoint(s, folder), CHECKED, 1)
        for name, source in templates.items()
        if name in ("range-reused", "tilde", "batch")
    }
    hold(cases, tmp_path)


@pytest.mark.parametrize("text", ['"""', "\u00a0", "\u200b", "\x07", "\r"], ids=ascii)
def test_a_text_no_modelfile_holds(text: str, nano_q8: Path, tmp_path: Path) -> None:
    def build(folder: Path) -> list[str | Path]:
        return ["modelfile", Path(shutil.copy(nano_q8, folder)), "--system", f"a{text}b", "-o", folder / "Modelfile"]

    hold({"text": Hostile(build, "")}, tmp_path)


def test_surroundings_do_not_change_bytes(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither hash seed, locale and time zone nor the number of workers."""
    digests = set()
    for seed, language, zone, jobs in (("0", "C", "UTC", "1"), ("7", "tr_TR.UTF-8", "Pacific/Auckland", "3")):
        for name, value in (("PYTHONHASHSEED", seed), ("LC_ALL", language), ("TZ", zone)):
            monkeypatch.setenv(name, value)
        out = tmp_path / f"{seed}.gguf"
        done = run("quantize", "Q4_K_M", "-m", nano, "-o", out, "-j", jobs, "--no-check")
        assert done.returncode == 0, done.stderr
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
