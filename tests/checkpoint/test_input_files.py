"""No output overwrites a file that is read to make it, by whatever name it is called; no byte of the input changes."""

import hashlib
import os
import shutil
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import InvalidInput, api
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.input_files import input_files, refuse_input_as_output
from borealis_gguf.modelfiles.write import save_modelfile
from borealis_gguf.pipeline.plan import FilePlan

from ..cli.test_cli import run
from ..helpers.lora_adapters import FOR_NANO
from ..helpers.vision_models import SEEING

OWN = r"the output would overwrite its own input"
NO_FOLDER = r"is a file, not a folder for the output; end a file's name with \.gguf"


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(plan: Callable[[Path], Sequence[FilePlan]], output: Path, folder: Path) -> None:
    """`execute` refuses at once, and leaves every byte of `folder`: where planning takes `output` for the name of a
    folder, and where the plan names the very file."""
    before, plans = digests(folder), plan(output)
    with pytest.raises(InvalidInput, match=f"{OWN}|{NO_FOLDER}"):
        api.execute(plans)
    with pytest.raises(InvalidInput, match=OWN):
        api.execute([replace(plans[0], path=output), *plans[1:]])
    assert digests(folder) == before


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = FOR_NANO.write(tmp_path)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, nano: Path) -> Path:
    return Path(shutil.copytree(nano, tmp_path / "nano"))


FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja", "README.md", "model.safetensors.index.json"),
    "model-00002-of-00003.safetensors",
)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_checkpoint(checkpoint: Path, name: str) -> None:
    refused(lambda path: [api.plan_convert(checkpoint, path)], checkpoint / name, checkpoint)
    refused(lambda path: api.plan_quantize(checkpoint, ["Q8_0"], path), checkpoint / name, checkpoint)


def test_an_additional_chat_template(checkpoint: Path) -> None:
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    output = checkpoint / "additional_chat_templates" / "tool.jinja"
    refused(lambda path: [api.plan_convert(checkpoint, path)], output, checkpoint)


def spelled(path: Path) -> Path:
    return path.parent / ".." / path.parent.name / path.name


def hard_link(path: Path) -> Path:
    os.link(path, path.parent.parent / "other.gguf")
    return path.parent.parent / "other.gguf"


def symbolic_link(path: Path) -> Path:
    (path.parent.parent / "link.gguf").symlink_to(path)
    return path.parent.parent / "link.gguf"


def linked_folder(path: Path) -> Path:
    (path.parent.parent / "folder").symlink_to(path.parent)
    return path.parent.parent / "folder" / path.name


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there that users lack")
@pytest.mark.parametrize("named", [spelled, hard_link, symbolic_link, linked_folder])
@pytest.mark.parametrize("name", ["tokenizer.json", "model-00001-of-00003.safetensors"])
def test_other_names_of_a_file(checkpoint: Path, named: Callable[[Path], Path], name: str) -> None:
    refused(lambda path: [api.plan_convert(checkpoint, path)], named(checkpoint / name), checkpoint)


def write_matrix(path: Path) -> Path:
    """A matrix in llama.cpp's older format."""
    name, values = b"blk.0.ffn_down.weight", np.ones(1024, "<f4")
    path.write_bytes(struct.pack(f"<ii{len(name)}sii", 1, len(name), name, 1, len(values)) + values.tobytes())
    return path


@pytest.mark.parametrize("name", ["imatrix.dat", "imatrix.gguf"])
def test_the_importance_matrix(nano: Path, tmp_path: Path, name: str) -> None:
    matrix = write_matrix(tmp_path / name)
    refused(lambda path: api.plan_quantize(nano, ["Q8_0"], path, imatrix=matrix), matrix, tmp_path)
    before = digests(tmp_path)
    done = run("quantize", "Q8_0", "-m", nano, "--imatrix", matrix, "-o", matrix)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert ("overwrite its own input" if name.endswith(".gguf") else "is a file, not a folder") in done.stderr
    assert digests(tmp_path) == before


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "README.md"])
def test_the_files_of_an_adapter(nano: Path, adapter: Path, name: str) -> None:
    refused(lambda path: [api.plan_convert(nano, path, loras=[(adapter, 1.0)])], adapter / name, adapter)
    refused(lambda path: [api.plan_convert_lora(adapter, nano, path)], adapter / name, adapter)


def test_convert_lora_and_its_base(checkpoint: Path, adapter: Path) -> None:
    for name in ("config.json", "model-00001-of-00003.safetensors", "tokenizer.json"):
        refused(lambda path: [api.plan_convert_lora(adapter, checkpoint, path)], checkpoint / name, checkpoint)


def test_the_checkpoint_of_an_mmproj(tmp_path: Path) -> None:
    seeing = SEEING[0].write(tmp_path)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        refused(lambda path: [api.plan_mmproj(seeing, path)], seeing / name, seeing)


def test_a_gguf(nano_bf16: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(nano_bf16, tmp_path / "m.gguf"))
    refused(lambda path: api.plan_quantize(model, ["Q8_0"], path), model, tmp_path)


def test_modelfile(nano_q8: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(nano_q8, tmp_path / "m.gguf"))
    os.link(model, tmp_path / "Modelfile")
    before = digests(tmp_path)
    for output in (model, tmp_path / "Modelfile"):
        with pytest.raises(InvalidInput, match=OWN):
            save_modelfile(output, model)
        done = run("modelfile", model, "-o", output)
        assert done.returncode == 2 and "overwrite its own input" in done.stderr and done.stderr.count("\n") == 1
    assert digests(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX")
def test_modelfile_replaces_no_device_and_follows_no_link(nano_q8: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(nano_q8, tmp_path / "m.gguf"))
    (tmp_path / "keys").write_text("kept")
    (tmp_path / "Modelfile").symlink_to(tmp_path / "keys")
    save_modelfile(tmp_path / "Modelfile", model)
    assert (tmp_path / "keys").read_text() == "kept" and not (tmp_path / "Modelfile").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="a folder, device or pipe"):
        save_modelfile(tmp_path / "pipe", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Modelfile", "keys", "m.gguf", "pipe"]


def test_another_file_of_the_folder_is_no_input(checkpoint: Path) -> None:
    """The default output lies in the checkpoint's folder, and is written again each time."""
    output = checkpoint / "nano-Q8_0.gguf"
    for _ in range(2):
        api.execute(api.plan_quantize(checkpoint, ["Q8_0"], output))
    assert output not in input_files(open_checkpoint(checkpoint))


def test_what_is_not_there_is_no_input(tmp_path: Path) -> None:
    refuse_input_as_output([tmp_path / "new.gguf"], [tmp_path / "new.gguf", Path("org/name@abc/model.safetensors")])
