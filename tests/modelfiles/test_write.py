"""A Modelfile for a real GGUF, read back; and the GGUFs, names and texts it is refused for."""

import shutil
import sys
from pathlib import Path

import pytest
from gguf import GGUFWriter

from borealis_gguf.errors import InvalidInput
from borealis_gguf.modelfiles.gemma import TEMPLATE
from borealis_gguf.modelfiles.read import read_modelfile
from borealis_gguf.modelfiles.syntax import Instruction
from borealis_gguf.modelfiles.write import write_modelfile


def gguf_with(path: Path, architecture: str, **strings: str) -> Path:
    writer = GGUFWriter(path, architecture)
    for key, value in strings.items():
        writer.add_string(key.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_round_trip(nano_q8: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "blå bær.gguf"
    shutil.copyfile(nano_q8, gguf)
    text = write_modelfile(gguf, system=' Svar "kort".\nTakk', num_ctx=1024, license_text="CC BY-SA 4.0\n\n# §1")
    assert read_modelfile(text, tmp_path) == [
        Instruction("FROM", "./blå bær.gguf"),
        Instruction("TEMPLATE", TEMPLATE),
        Instruction("SYSTEM", ' Svar "kort".\nTakk'),
        Instruction("PARAMETER", "1024", "num_ctx"),
        Instruction("PARAMETER", "1", "temperature"),
        Instruction("PARAMETER", "64", "top_k"),
        Instruction("PARAMETER", "0.95", "top_p"),
        Instruction("PARAMETER", "0", "min_p"),
        Instruction("PARAMETER", "1", "repeat_penalty"),
        Instruction("PARAMETER", "<end_of_turn>", "stop"),
        Instruction("LICENSE", "CC BY-SA 4.0\n\n# §1"),
    ]
    assert "\nSYSTEM" not in write_modelfile(gguf)


def test_num_ctx_is_no_more_than_the_model_can(nano_q8: Path) -> None:
    assert "\nPARAMETER num_ctx 2048\n" in write_modelfile(nano_q8)
    with pytest.raises(InvalidInput, match="num_ctx: 0"):
        write_modelfile(nano_q8, num_ctx=0)


def test_vision_is_a_second_from(nano_q8: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "a.gguf"
    shutil.copyfile(nano_q8, gguf)
    mmproj = gguf_with(tmp_path / "mmproj.gguf", "clip", general__type="mmproj")
    assert write_modelfile(gguf, mmproj=mmproj).startswith("FROM ./a.gguf\nFROM ./mmproj.gguf\nTEMPLATE ")
    with pytest.raises(InvalidInput, match="not a vision part"):
        write_modelfile(gguf, mmproj=gguf)
    with pytest.raises(InvalidInput, match="not in the folder of"):
        write_modelfile(gguf, mmproj=nano_q8)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes links for administrators only")
def test_links_lie_where_they_are(nano_q8: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    mmproj = gguf_with(tmp_path / "blobs" / "1", "clip", general__type="mmproj")
    (tmp_path / "a.gguf").symlink_to(nano_q8)
    (tmp_path / "mmproj.gguf").symlink_to(mmproj)
    text = write_modelfile(tmp_path / "a.gguf", mmproj=tmp_path / "mmproj.gguf")
    assert text.startswith("FROM ./a.gguf\nFROM ./mmproj.gguf\n")
    with pytest.raises(InvalidInput, match="not in the folder of"):
        write_modelfile(tmp_path / "a.gguf", mmproj=mmproj)


@pytest.mark.parametrize("name", ["a\nb.gguf", "a\u00a0b.gguf", "a\u200bb.gguf"])
def test_names_a_modelfile_cannot_hold(nano_q8: Path, tmp_path: Path, name: str) -> None:
    gguf = tmp_path / name
    try:
        shutil.copyfile(nano_q8, gguf)
    except OSError:  # no such name on this system: then no such file can be given
        return
    with pytest.raises(InvalidInput, match="FROM"):
        write_modelfile(gguf)


@pytest.mark.parametrize("text", ['a """ b', "a\u00a0b", "a\u200bb", "a\x00b", "a\rb"])
def test_texts_a_modelfile_cannot_hold(nano_q8: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match="SYSTEM"):
        write_modelfile(nano_q8, system=text)
    with pytest.raises(InvalidInput, match="LICENSE"):
        write_modelfile(nano_q8, license_text=text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.gguf"):
        write_modelfile(tmp_path / "nothing.gguf")


def test_a_model_that_is_no_gemma_chat_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Modelfiles are written for gemma3"):
        write_modelfile(gguf_with(tmp_path / "c.gguf", "clip", general__type="mmproj"))


def test_another_chat_format_is_refused(nano_q8: Path, tmp_path: Path) -> None:
    other, bare = tmp_path / "other.gguf", tmp_path / "bare.gguf"
    data = nano_q8.read_bytes()
    other.write_bytes(data.replace(b"<start_of_turn>", b"<begin_of_turn>"))
    with pytest.raises(InvalidInput, match="does not render Gemma 3's format"):
        write_modelfile(other)
    bare.write_bytes(data.replace(b"tokenizer.chat_template", b"tokenizer.chat_tempLATE"))
    with pytest.raises(InvalidInput, match=r"no tokenizer\.chat_template"):
        write_modelfile(bare)
