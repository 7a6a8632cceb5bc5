"""Writes the Modelfile for a Gemma 3 GGUF, to be used with `ollama create NAME -f Modelfile`."""

import os
import struct
from pathlib import Path
from typing import Any

from ..atomic_file import write_file
from ..checkpoint.gguf import GGUFFile, read_gguf
from ..checkpoint.gguf_naming import mmproj_beside
from ..checkpoint.input_files import input_files, refuse_input_as_output
from ..errors import InvalidInput
from ..runtime.prompting.chat_template import ChatTemplate
from ..runtime.prompting.sampling_settings import sampling_from_metadata
from ..runtime.prompting.template_renderer import TemplateRenderer
from .gemma import SAMPLES, STOP, TEMPLATE, render_gemma
from .syntax import Instruction, format_instruction

ARCHITECTURE = "gemma3"
OLLAMA, OLLAMA_WITH_VISION = "0.30.0", "0.30.4"
"""The first versions that run a GGUF as this Modelfile expects: with llama.cpp's server, and with two FROM lines."""

MIN_VISION_CONTEXT = 2048
"""Ollama gives no model that sees less."""

_BOS = "<bos>"


def write_modelfile(
    gguf: Path,
    *,
    mmproj: Path | str = "auto",
    system: str | None = None,
    num_ctx: int = 8192,
    license_text: str | None = None,
) -> str:
    """Returns the text of a Modelfile to save beside `gguf` (as UTF-8 with \\n line ends).

    `mmproj` is the model's vision file, "auto" for the one that lies beside it, if any, or "none".
    Raises InvalidInput if a file is missing or of the wrong kind, if the GGUF's chat template renders another format
    than TEMPLATE, and for texts that a Modelfile cannot contain.
    """
    header = read_gguf(gguf)
    architecture = header.value("general.architecture")
    if architecture != ARCHITECTURE or header.value("general.type", "model") != "model":
        kind = f"{architecture} {header.value('general.type', 'model')}"
        raise InvalidInput(f"{gguf}: a {kind}; Modelfiles are written for {ARCHITECTURE} models")
    _check_types(header)
    _check_template(header)
    vision = vision_file(gguf, mmproj)
    models = [path for path in input_files(header) if path.parent == header.path.parent]
    instructions = [Instruction("FROM", f"./{path.name}") for path in sorted(set(models))]
    if vision is not None:
        instructions.append(Instruction("FROM", f"./{_checked_mmproj(header, vision).name}"))
    instructions.append(Instruction("TEMPLATE", TEMPLATE))
    if system:
        instructions.append(Instruction("SYSTEM", system))
    instructions += _parameters(header, num_ctx, MIN_VISION_CONTEXT if vision else 1)
    if license_text:
        instructions.append(Instruction("LICENSE", license_text))
    needed = OLLAMA_WITH_VISION if vision else OLLAMA
    comment = f"# For Ollama {needed} or newer, from this file's folder: ollama create NAME -f Modelfile"
    return "\n".join([comment, *map(format_instruction, instructions)]) + "\n"


def save_modelfile(output: Path, gguf: Path, *, mmproj: Path | str = "auto", **options: Any) -> None:
    """Writes what `write_modelfile` returns to `output`, whole or not at all; arguments and errors are its own.

    Raises InvalidInput also where `output` is one of the models, or no regular file.
    """
    models = [read_gguf(path) for path in (gguf, vision_file(gguf, mmproj)) if path is not None]
    refuse_input_as_output([output], [file for model in models for file in input_files(model)])
    write_file(output, [write_modelfile(gguf, mmproj=mmproj, **options).encode("utf-8")])


def vision_file(gguf: Path, mmproj: Path | str) -> Path | None:
    """The vision file that `mmproj`, as in `write_modelfile`, means."""
    if mmproj in ("auto", "none"):
        return mmproj_beside(gguf) if mmproj == "auto" and gguf.parent.is_dir() else None
    return Path(mmproj)


def _check_types(header: GGUFFile) -> None:
    """Refuses types that Ollama refuses itself, with a message that says little."""
    found = {slice.type.name for slice in header.tensors.values() if slice.type.name.startswith("TQ")}
    if found:
        raise InvalidInput(f"{header.path}: Ollama takes no {' or '.join(sorted(found))} tensors; use another preset")


def _check_template(header: GGUFFile) -> None:
    """Checks that the GGUF's chat template renders the same prompts as TEMPLATE, which Ollama will use."""
    source = header.value("tokenizer.chat_template")
    if source is None:
        raise InvalidInput(
            f"{header.path}: no tokenizer.chat_template: not a chat model, so it needs no Modelfile of ours"
        )
    try:
        with TemplateRenderer(ChatTemplate(source, bos_token=_BOS)) as renderer:
            renderings = renderer.render_each(SAMPLES)
    except InvalidInput as error:
        raise InvalidInput(f"{header.path}: {error}") from error
    for messages, rendering in zip(SAMPLES, renderings, strict=True):
        if rendering.text is None:
            raise InvalidInput(f"{header.path}: {rendering.refusal}")
        if rendering.text not in (_BOS + render_gemma(messages), render_gemma(messages)):
            raise InvalidInput(
                f"{header.path}: its chat template does not render Gemma 3's format; write TEMPLATE by hand"
            )


def _checked_mmproj(model: GGUFFile, mmproj: Path) -> Path:
    """Refuses an mmproj that Ollama would take and then answer no request with."""
    if os.path.realpath(mmproj.parent) != os.path.realpath(model.path.parent):
        raise InvalidInput(f"{mmproj}: not in the folder of {model.path}; put both in one")
    header = read_gguf(mmproj)
    if header.value("general.type") != "mmproj":
        raise InvalidInput(f"{mmproj}: not a vision part: its general.type is not mmproj")
    size, needed = header.value("clip.vision.projection_dim"), model.value(f"{ARCHITECTURE}.embedding_length")
    if size != needed:
        raise InvalidInput(
            f"{mmproj}: belongs to a model with embeddings of {size}, not {needed}; give this model's own"
        )
    return mmproj


def _parameters(header: GGUFFile, num_ctx: int, least: int) -> list[Instruction]:
    sampling = sampling_from_metadata(header)
    trained = header.value(f"{ARCHITECTURE}.context_length", num_ctx)
    if num_ctx < 1:
        raise InvalidInput(f"num_ctx: {num_ctx} is not 1 or more")
    values = {
        "num_ctx": str(max(min(num_ctx, trained), least)),
        "temperature": _shortest_decimal(sampling.temperature),
        "top_k": str(sampling.top_k),
        "top_p": _shortest_decimal(sampling.top_p),
        "min_p": _shortest_decimal(sampling.min_p),
        "repeat_penalty": _shortest_decimal(sampling.repeat_penalty),
        "repeat_last_n": str(sampling.repeat_last_n),
        "stop": STOP,
    }
    return [Instruction("PARAMETER", value, key) for key, value in values.items()]


def _shortest_decimal(value: float) -> str:
    """Returns the shortest decimal with the same float32 value; GGUF and Ollama store these numbers as float32."""
    float32 = struct.pack("<f", value)
    texts = (f"{value:.{digits}g}" for digits in range(1, 10))
    return next(text for text in texts if struct.pack("<f", float(text)) == float32)
