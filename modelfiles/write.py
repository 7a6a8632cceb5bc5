"""Writes the Modelfile for a Gemma 3 GGUF, to be used with `ollama create NAME -f Modelfile`."""

import struct
from pathlib import Path

from ..checkpoint.gguf import GGUFFile, read_gguf
from ..errors import InvalidInput
from ..runtime.prompting.chat_template import ChatTemplate
from ..runtime.prompting.sampling_settings import sampling_from_metadata
from ..runtime.prompting.template_renderer import TemplateRenderer
from .gemma import SAMPLES, STOP, TEMPLATE, render_gemma
from .syntax import Instruction, format_instruction

ARCHITECTURE = "gemma3"
_BOS = "<bos>"


def write_modelfile(
    gguf: Path,
    *,
    mmproj: Path | None = None,
    system: str | None = None,
    num_ctx: int = 8192,
    license_text: str | None = None,
) -> str:
    """Returns the text of a Modelfile to save beside `gguf` (as UTF-8 with \\n line ends).

    Raises InvalidInput if a file is missing or of the wrong kind, if the GGUF's chat template renders another format
    than TEMPLATE, and for texts that a Modelfile cannot contain.
    """
    header = read_gguf(gguf)
    architecture = header.value("general.architecture")
    if architecture != ARCHITECTURE or header.value("general.type", "model") != "model":
        kind = f"{architecture} {header.value('general.type', 'model')}"
        raise InvalidInput(f"{gguf}: a {kind}; Modelfiles are written for {ARCHITECTURE} models")
    _check_template(header)
    instructions = [Instruction("FROM", f"./{gguf.name}")]
    if mmproj is not None:
        instructions.append(Instruction("FROM", f"./{_checked_mmproj(gguf, mmproj).name}"))
    instructions.append(Instruction("TEMPLATE", TEMPLATE))
    if system:
        instructions.append(Instruction("SYSTEM", system))
    instructions += _parameters(header, num_ctx)
    if license_text:
        instructions.append(Instruction("LICENSE", license_text))
    return "\n".join(map(format_instruction, instructions)) + "\n"


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


def _checked_mmproj(gguf: Path, mmproj: Path) -> Path:
    if mmproj.parent.resolve() != gguf.parent.resolve():
        raise InvalidInput(f"{mmproj}: not in the folder of {gguf}; put both in one")
    if read_gguf(mmproj).value("general.type") != "mmproj":
        raise InvalidInput(f"{mmproj}: not a vision part: its general.type is not mmproj")
    return mmproj


def _parameters(header: GGUFFile, num_ctx: int) -> list[Instruction]:
    sampling = sampling_from_metadata(header)
    trained = header.value(f"{ARCHITECTURE}.context_length", num_ctx)
    if num_ctx < 1:
        raise InvalidInput(f"num_ctx: {num_ctx} is not 1 or more")
    values = {
        "num_ctx": str(min(num_ctx, trained)),
        "temperature": _shortest_decimal(sampling.temperature),
        "top_k": str(sampling.top_k),
        "top_p": _shortest_decimal(sampling.top_p),
        "min_p": _shortest_decimal(sampling.min_p),
        "repeat_penalty": _shortest_decimal(sampling.repeat_penalty),
        "stop": STOP,
    }
    return [Instruction("PARAMETER", value, key) for key, value in values.items()]


def _shortest_decimal(value: float) -> str:
    """Returns the shortest decimal with the same float32 value; GGUF and Ollama store these numbers as float32."""
    float32 = struct.pack("<f", value)
    texts = (f"{value:.{digits}g}" for digits in range(1, 10))
    return next(text for text in texts if struct.pack("<f", float(text)) == float32)
