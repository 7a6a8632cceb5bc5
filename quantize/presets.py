"""The presets: llama-quantize's names, the ftype each writes into the file, and the type most tensors get.

Which type a single tensor gets is in `choose.py`; most presets mix several.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from ..checkpoint.types import GGMLQuantizationType
from ..errors import InvalidInput
from .encoders.ggml import NOT_ENCODED


@dataclass(frozen=True, slots=True)
class Preset:
    """`ftype` is `general.file_type` (`llama_ftype` of llama.h); `type` is what a tensor gets unless a rule differs.

    Both are None for COPY.
    """

    name: str
    ftype: int | None
    type: GGMLQuantizationType | None
    help: str


def _row(name: str, ftype: int, type_name: str, help: str) -> Preset:
    return Preset(name, ftype, GGMLQuantizationType[type_name], help)


PRESETS = (
    _row("F32", 0, "F32", "every weight in 32 bits"),
    _row("BF16", 32, "BF16", "16 bits with float32's range: the master file"),
    _row("F16", 1, "F16", "16 bits; Gemma 3 activations overflow in F16 arithmetic, prefer BF16"),
    _row("Q8_0", 7, "Q8_0", "8.5 bits, no visible loss; the best choice for 270m"),
    _row("Q6_K", 18, "Q6_K", "6.6 bits, nearly lossless"),
    _row("Q5_K_M", 17, "Q5_K", "5.5 bits, with 6.6 for the sensitive half of attn_v and ffn_down"),
    _row("Q5_K_S", 16, "Q5_K", "5.5 bits"),
    _row("Q5_1", 9, "Q5_1", "6 bits, older format, any row width that is a multiple of 32"),
    _row("Q5_0", 8, "Q5_0", "5.5 bits, older format"),
    _row("Q4_K_M", 15, "Q4_K", "4.5 bits, with 6.6 for the sensitive half of attn_v and ffn_down; the usual choice"),
    _row("Q4_K_S", 14, "Q4_K", "4.5 bits, with 5.5 for the first layers"),
    _row("IQ4_NL", 25, "IQ4_NL", "4.5 bits on a curved scale, any row width that is a multiple of 32"),
    _row("IQ4_XS", 30, "IQ4_XS", "4.25 bits on a curved scale"),
    _row("Q4_1", 3, "Q4_1", "5 bits, older format"),
    _row("Q4_0", 2, "Q4_0", "4.5 bits, older format, fastest on many CPUs"),
    _row("MXFP4_MOE", 38, "MXFP4", "4.25-bit floats for experts, 8.5 bits for the rest"),
    _row("Q3_K_L", 13, "Q3_K", "3.4 bits, with 5.5 for attention output, attn_v and ffn_down"),
    _row("Q3_K_M", 12, "Q3_K", "3.4 bits, with 4.5 to 5.5 for attention output, attn_v and ffn_down"),
    _row("Q3_K_S", 11, "Q3_K", "3.4 bits"),
    _row("IQ3_M", 27, "IQ3_S", "3.4 bits from a lattice, with 4.5 for attention output and attn_v"),
    _row("IQ3_S", 26, "IQ3_S", "3.4 bits from a lattice"),
    _row("IQ3_XS", 22, "IQ3_S", "3.1 to 3.4 bits from a lattice; needs an importance matrix"),
    _row("IQ3_XXS", 23, "IQ3_XXS", "3.1 bits from a lattice; needs an importance matrix"),
    _row("Q2_K", 10, "Q2_K", "2.6 bits, with 3.4 to 4.5 for the sensitive tensors"),
    _row("Q2_K_S", 21, "Q2_K", "2.6 bits; needs an importance matrix"),
    _row("Q2_0", 41, "Q2_0", "2.25 bits in groups of 64"),
    _row("IQ2_M", 29, "IQ2_S", "2.6 bits from a lattice; needs an importance matrix"),
    _row("IQ2_S", 28, "IQ2_XS", "2.3 to 2.6 bits from a lattice; needs an importance matrix"),
    _row("IQ2_XS", 20, "IQ2_XS", "2.3 bits from a lattice; needs an importance matrix"),
    _row("IQ2_XXS", 19, "IQ2_XXS", "2.1 bits from a lattice; needs an importance matrix"),
    _row("TQ2_0", 37, "TQ2_0", "2.1 bits, for models trained with ternary weights"),
    _row("TQ1_0", 36, "TQ1_0", "1.7 bits, for models trained with ternary weights"),
    _row("IQ1_M", 31, "IQ1_M", "1.75 bits from a lattice; needs an importance matrix"),
    _row("IQ1_S", 24, "IQ1_S", "1.6 bits from a lattice; needs an importance matrix"),
    _row("Q1_0", 40, "Q1_0", "1.1 bits: signs and a scale, for models trained so"),
    Preset("COPY", None, None, "every tensor as it is"),
)

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Short names that llama-quantize knows for a preset."""

_BY_NAME = {preset.name: preset for preset in PRESETS}


def find_preset(name: str) -> Preset:
    """The preset called `name` (any case, aliases too); InvalidInput with the nearest names when there is none."""
    key = name.strip().upper().replace("-", "_")
    preset = _BY_NAME.get(ALIASES.get(key, key))
    if preset is None:
        raise InvalidInput(f"no preset {name!r}{_suggestion(key, [*_BY_NAME, *ALIASES])}")
    return preset


def parse_type(name: str) -> GGMLQuantizationType:
    """The tensor type called `name` (any case) that weights can be quantized to; else InvalidInput."""
    types = {type.name: type for type in GGMLQuantizationType if type not in NOT_ENCODED}
    found = types.get(name.strip().upper())
    if found is None:
        raise InvalidInput(f"no tensor type {name!r}{_suggestion(name.upper(), list(types))}")
    return found


def parse_tensor_type(text: str) -> tuple[str, GGMLQuantizationType]:
    """`pattern=type`, as llama-quantize's `--tensor-type` has it: the pattern in lower case, escapes untouched."""
    pattern, equals, type_name = text.partition("=")
    if not (pattern and equals and type_name):
        raise InvalidInput(f"--tensor-type {text!r}: write PATTERN=TYPE, for example attn_k=q8_0")
    lowered = "".join(c if before == "\\" else c.lower() for before, c in zip(" " + pattern, pattern, strict=False))
    return lowered, parse_type(type_name)


def bits_per_weight(type: GGMLQuantizationType) -> float:
    """Bits of one weight, scales included."""
    return type.nbytes * 8 / type.block


def _suggestion(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(known)}"
