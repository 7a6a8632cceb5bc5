"""A Modelfile for a real GGUF, read back; and the GGUFs, names and texts it is refused for."""

import shutil
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter

from borealis_gguf import execute, plan_quantize
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.errors import InvalidInput
from borealis_gguf.modelfiles.gemma import TEMPLATE
from borealis_gguf.modelfiles.read import read_modelfile
from borealis_gguf.modelfiles.syntax import Instruction
from borealis_gguf.modelfiles.write import save_modelfile, write_modelfile

COMMENT = "# For Ollama 0.30.0 or newer, from this file's folder: ollama create NAME -f Modelfile\n"
VISION_COMMENT = COMMENT.replace("0.30.0", "0.30.4")


def gguf_with(path: Path, architecture: str, n_embd: int = 0, **strings: str) -> Path:
    """A GGUF without tensors; `n_embd` is the size of a vision file's projection."""
    writer = GGUFWriter(path, architecture)
    for key, value in strings.items():
        writer.add_string(key.replace("__", "."), value)
    writer.add_uint32("clip.vision.projection_dim", n_embd)
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
        Instruction("PARAMETER", "64", "repeat_last_n"),
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
    n_embd = read_gguf(gguf).value("gemma3.embedding_length")
    mmproj = gguf_with(tmp_path / "mmproj.gguf", "clip", n_embd, general__type="mmproj")
    text = write_modelfile(gguf, mmproj=mmproj, num_ctx=512)
    assert text.startswith(VISION_COMMENT + "FROM ./a.gguf\nFROM ./mmproj.gguf\nTEMPLATE ")
    assert "\nPARAMETER num_ctx 2048\n" in text
    with pytest.raises(InvalidInput, match="not a vision part"):
        write_modelfile(gguf, mmproj=gguf)
    with pytest.raises(InvalidInput, match="not in the folder of"):
        write_modelfile(gguf, mmproj=nano_q8)
    other = gguf_with(tmp_path / "other.gguf", "clip", n_embd + 1, general__type="mmproj")
    with pytest.raises(InvalidInput, match=f"embeddings of {n_embd + 1}, not {n_embd}"):
        write_modelfile(gguf, mmproj=other)


def test_the_vision_file_beside_the_model_is_found(nano_q8: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "a-Q8_0.gguf"
    shutil.copyfile(nano_q8, gguf)
    n_embd = read_gguf(gguf).value("gemma3.embedding_length")
    gguf_with(tmp_path / "mmproj-a-F16.gguf", "clip", n_embd, general__type="mmproj")
    assert "\nFROM ./a-Q8_0.gguf\nFROM ./mmproj-a-F16.gguf\n" in write_modelfile(gguf)
    assert "mmproj" not in write_modelfile(gguf, mmproj="none")
    save_modelfile(tmp_path / "Modelfile", gguf)
    with pytest.raises(InvalidInput, match="would overwrite its own input"):
        save_modelfile(tmp_path / "mmproj-a-F16.gguf", gguf)


def test_every_shard_is_named(nano_q8: Path, tmp_path: Path) -> None:
    """Of a file that the gguf package has split."""
    reader = GGUFReader(nano_q8)
    writer = GGUFWriter(tmp_path / "a.gguf", "gemma3", split_max_tensors=(len(reader.tensors) + 2) // 3)
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind, inner = field.types[0], field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    names = [f"a-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    text = write_modelfile(tmp_path / names[0])
    assert text.startswith(COMMENT + "".join(f"FROM ./{name}\n" for name in names) + "TEMPLATE")
    (tmp_path / names[1]).unlink()
    with pytest.raises(InvalidInput, match=names[1]):
        write_modelfile(tmp_path / names[0])


def test_types_that_ollama_refuses(nano: Path, tmp_path: Path) -> None:
    plans = plan_quantize(nano, ["TQ2_0"], tmp_path)
    execute(plans, check=False)
    with pytest.raises(InvalidInput, match="Ollama takes no TQ2_0 tensors"):
        write_modelfile(plans[0].path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes links for administrators only")
def test_links_lie_where_they_are(nano_q8: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    n_embd = read_gguf(nano_q8).value("gemma3.embedding_length")
    mmproj = gguf_with(tmp_path / "blobs" / "1", "clip", n_embd, general__type="mmproj")
    (tmp_path / "a.gguf").symlink_to(nano_q8)
    (tmp_path / "mmproj.gguf").symlink_to(mmproj)
    text = write_modelfile(tmp_path / "a.gguf", mmproj=tmp_path / "mmproj.gguf")
    assert text.startswith(VISION_COMMENT + "FROM ./a.gguf\nFROM ./mmproj.gguf\n")
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
