"""No text of a file commands the terminal: whatever a command prints, control characters are spelled out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from borealis_gguf.terminal_escape import UNSAFE, escape_json, escape_line

from .test_cli import run

EVIL = "\x1b]0;owned\x07\x9b31m\u202e\x7f\r\x08"
"""A title, a colour by a C1 control, a change of direction, and what overwrites."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GGUF with escape sequences in every value."""
    return write_model(tmp_path / "evil.gguf", "general.tags", "blk.0.attn_q.weight")


def write_model(path: Path, key: str, tensor: str) -> Path:
    writer = GGUFWriter(path, f"gemma3{EVIL}")
    writer.add_type(f"model{EVIL}")
    writer.add_name(f"name{EVIL}\nError: forged")
    writer.add_array(key, [f"tag{EVIL}"])
    writer.add_string("tokenizer.chat_template", f"{EVIL}{{{{ messages }}}}")
    writer.add_tensor(tensor, np.zeros((4, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, nano: Path) -> Path:
    """A checkpoint with escape sequences in its folder's name, its card, its settings and its config."""
    folder = Path(shutil.copytree(nano, tmp_path / f"nano{EVIL}"))
    (folder / "README.md").write_text(f"---\nlicense: '{EVIL}'\nname: [1, 'x{EVIL}']\nmodel_type: {EVIL}\n---\n")
    (folder / "generation_config.json").write_text('{"temperature": -1}')
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = f"{EVIL}{{{{ bos_token }}}}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def printed(*args: str | Path) -> str:
    done = run(*args)
    assert "Traceback" not in done.stderr
    shown = done.stdout + done.stderr
    assert shown and not UNSAFE.findall(shown)
    return shown


@pytest.mark.parametrize("command", [
    lambda gguf, out: ("inspect", gguf),
    lambda gguf, out: ("inspect", gguf, "--json"),
    lambda gguf, out: ("modelfile", gguf),
    lambda gguf, out: ("quantize", "Q8_0", "-m", gguf, "-o", out),
    lambda gguf, out: ("quantize", "Q8_0", "-m", gguf, "-o", out, "--dry-run"),
    lambda gguf, out: ("quantize", "Q8_0", "-m", gguf, "-o", out, "--dry-run", "--json"),
    lambda gguf, out: ("run", gguf, "Hei"),
    lambda gguf, out: ("chat", gguf),
    lambda gguf, out: ("check", gguf, "--against", gguf),
    lambda gguf, out: ("check", gguf, "--against", gguf, "--json"),
    lambda gguf, out: ("bench", "run", gguf),
])  # fmt: skip
def test_strings_of_a_gguf(model: Path, command: Callable[[Path, Path], tuple[str | Path, ...]]) -> None:
    printed(*command(model, model.with_name("out.gguf")))


@pytest.mark.parametrize("names", [(f"general.tags{EVIL}", "x"), ("general.tags", f"x{EVIL}\nforged")])
def test_names_in_a_gguf_have_no_control_characters(tmp_path: Path, names: tuple[str, str]) -> None:
    assert "is not a " in printed("inspect", write_model(tmp_path / "evil.gguf", *names))


def test_a_name_forges_no_line(model: Path) -> None:
    lines = printed("inspect", model).splitlines()
    assert not [line for line in lines if line.startswith(("forged", "Error"))]


def test_json_is_the_same_json(model: Path) -> None:
    content = json.loads(run("inspect", model, "--json").stdout)
    assert {kv["key"]: kv["value"] for kv in content["kv"]}["general.architecture"] == f"gemma3{EVIL}"
    assert escape_json(json.dumps(EVIL, ensure_ascii=False)) != json.dumps(EVIL, ensure_ascii=False)


def test_texts_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    shown = printed("convert", checkpoint, "-o", out)
    assert "left out of the GGUF, since a run would refuse it: temperature -1" in shown
    for args in (("check", out, "--against", checkpoint), ("convert", checkpoint, "--lora", checkpoint)):
        printed(*args)
    (checkpoint / "config.json").write_text(json.dumps({"architectures": [EVIL]}))
    assert "is not known" in printed("convert", checkpoint, "-o", out)


def test_a_line_stays_a_line() -> None:
    assert escape_line("a\nb\tc\x1b") == "a^Jb^Ic^["
