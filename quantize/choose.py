"""Which type each tensor gets: by an option for it, else by the preset's mixture, as far as its row width allows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.types import KV, UNQUANTIZED, GGMLQuantizationType
from ..errors import InvalidInput
from .encoders.ggml import NOT_ENCODED
from .mixture import OUTPUT, TOKEN_EMBD, TOKEN_EMBD_NAMES, Mixture, ModelShape, V, block_of, category
from .presets import Preset

T = GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class TypeOptions:
    """llama-quantize's options for tensor types. `tensor_types`: (pattern, type), the first match counts."""

    has_imatrix: bool = False
    pure: bool = False
    tensor_types: tuple[tuple[str, GGMLQuantizationType], ...] = ()
    output_tensor_type: GGMLQuantizationType | None = None
    token_embedding_type: GGMLQuantizationType | None = None
    leave_output_tensor: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """`requested` is the type that did not fit the row width, or None. `requires_imatrix`: useless without one."""

    type: GGMLQuantizationType
    requested: GGMLQuantizationType | None = None
    requires_imatrix: bool = False


TensorInfo = tuple[str, tuple[int, ...], GGMLQuantizationType]
"""(name, row-major shape, type in the source)"""


def file_order(names: Iterable[str]) -> list[str]:
    """`names` in the order in which llama.cpp writes and counts: outside of blocks first, then by block; then bytes."""
    return sorted(names, key=_order)


def model_shape(kv: Iterable[KV]) -> ModelShape:
    """The shape of a model, from its metadata. Of head counts per layer the first counts, as in llama.cpp."""
    values = {entry.key: entry.value for entry in kv}
    arch = str(values.get("general.architecture", ""))
    if arch == "clip":
        return ModelShape(arch, 0, 0, 0)

    def number(key: str, default: int | None) -> int:
        value: Any = values.get(f"{arch}.{key}", default)
        if hasattr(value, "__len__") and not isinstance(value, str) and len(value):
            value = value[0]
        if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 0:
            raise InvalidInput(f"{arch}.{key}: {value!r} is not a count; the file's metadata is broken")
        return int(value)

    heads = number("attention.head_count", 0)
    heads_kv = number("attention.head_count_kv", heads)
    return ModelShape(arch, number("block_count", None), heads, heads_kv, number("expert_count", 0))


def choose_types(
    tensors: Sequence[TensorInfo], model: ModelShape, preset: Preset, options: TypeOptions
) -> list[Choice]:
    """The type of every tensor, in the order given, which must be the output file's (see `file_order`).

    Follows llama.cpp's src/llama-quant.cpp. Raises InvalidInput for an override that does not fit its tensor.
    """
    chooser = _Chooser(tensors, model, preset, options)
    return [chooser.choose(*tensor) for tensor in tensors]


def require_matches(shapes: Mapping[str, tuple[int, ...]], arch: str, options: TypeOptions) -> None:
    """Raises InvalidInput for a pattern that matches no tensor which presets quantize; llama-quantize accepts it."""
    names = [name for name, shape in shapes.items() if is_quantized_by_presets(name, shape, arch)]
    for text, _ in options.tensor_types:
        if not any(map(_pattern(text).search, names)):
            kinds = list(dict.fromkeys(re.sub(r"^blk\.\d+\.", "", name) for name in names))
            listed = ", ".join(kinds[:12]) + (", …" if len(kinds) > 12 else "")
            example = f" (in full {names[-1]})" if names else ""
            raise InvalidInput(f"--tensor-type {text!r}: fits no tensor that is quantized; these are {listed}{example}")


class _Chooser:
    """Chooses for one file: compiled patterns, and a mixture, which counts the tensors it has seen."""

    def __init__(self, tensors: Sequence[TensorInfo], model: ModelShape, preset: Preset, options: TypeOptions) -> None:
        self.arch, self.preset, self.options = model.arch, preset, options
        self.patterns = [(_pattern(text), _encodable(type)) for text, type in options.tensor_types]
        kinds = [category(name) for name, _, _ in tensors]
        self.mixture = Mixture(
            preset=preset.name,
            base=T.F32 if preset.type is None else preset.type,
            model=model,
            has_imatrix=options.has_imatrix,
            output_type=options.output_tensor_type,
            of_v=kinds.count(V),
            tied=OUTPUT not in kinds,
        )

    def choose(self, name: str, shape: tuple[int, ...], source: GGMLQuantizationType) -> Choice:
        if self.preset.type is None or not is_quantized_by_presets(name, shape, self.arch):
            return Choice(source)
        if self.options.leave_output_tensor and name == "output.weight":
            return Choice(source)
        requested = type = self.type_by_option(name)
        if type is not None:
            _require_fit(name, shape[-1], type)
        else:
            requested = self.requested(name, shape)
            type = fallback(name, shape[-1], requested)
        return Choice(type, None if requested == type else requested, requires_imatrix(name, type, self.preset))

    def type_by_option(self, name: str) -> GGMLQuantizationType | None:
        """The type from --output-tensor-type or --token-embedding-type; it is never replaced by a fallback."""
        kind, options = category(name), self.options
        if kind == OUTPUT:
            return _encodable(options.output_tensor_type)
        # The per-layer table is large and has its own name: a pattern that names it goes before the option.
        if kind == TOKEN_EMBD and (name == "token_embd.weight" or self.type_by_pattern(name) is None):
            return _encodable(options.token_embedding_type)
        return None

    def type_by_pattern(self, name: str) -> GGMLQuantizationType | None:
        return next((type for pattern, type in self.patterns if pattern.search(name)), None)

    def requested(self, name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
        """The type before a fallback. Patterns and mixtures count for quantized presets only."""
        base = self.mixture.base
        if base in UNQUANTIZED:
            return base
        manual = self.type_by_pattern(name)
        if manual is not None:
            return manual
        return base if self.options.pure else self.mixture.type(name, shape)


_NEVER = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
]
"""Parts of names of tensors that keep their type, because they are small or too sensitive."""

_NEVER_GLM5 = [
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
]


def is_quantized_by_presets(name: str, shape: tuple[int, ...], arch: str) -> bool:
    """Whether presets may change this tensor's type: matrices of weights, but no norms, positions or small helpers."""
    if not any(extent > 1 for extent in shape[:-1]):
        return False
    # llama.cpp finds "weight" at len - 6, which for a name of five characters is its "not found".
    if not name.endswith("weight") and len(name.encode("utf-8", "surrogateescape")) != 5:
        return False
    if name in ("position_embd.weight", "token_types.weight"):
        return False
    never = [*_NEVER, *_NEVER_GLM5] if arch == "glm5-next" else _NEVER
    return not any(part in name for part in never)


_FALLBACK = (
    dict.fromkeys(["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"], T.IQ4_NL)
    | dict.fromkeys(["Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"], T.Q4_0)
    | {"Q4_K": T.Q5_0, "Q5_K": T.Q5_1, "Q6_K": T.Q8_0}
)
"""Types in large blocks → their neighbour in blocks of 32."""


def fallback(name: str, n_per_row: int, requested: GGMLQuantizationType) -> GGMLQuantizationType:
    """`requested` if rows of `n_per_row` fill its blocks; else its neighbour in blocks of 32; else F16."""
    block = requested.block
    if n_per_row % block == 0:
        return requested
    if requested.name not in _FALLBACK and block > 32:
        raise InvalidInput(
            f"{name}: {n_per_row} columns do not fit {requested.name} blocks of {block}; {_advice(name)}"
        )
    neighbour = _FALLBACK.get(requested.name, requested)
    return T.F16 if n_per_row % neighbour.block else neighbour


def requires_imatrix(name: str, type: GGMLQuantizationType, preset: Preset) -> bool:
    """Whether this tensor as `type` is useless without an importance matrix; embeddings and output are exempt."""
    if name in TOKEN_EMBD_NAMES or name == "output.weight":
        return False
    if type == T.Q2_K:
        return preset.name == "Q2_K_S"
    return type in (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS)


def _order(name: str) -> tuple[int, bytes]:
    return block_of(name), name.encode("utf-8", "surrogateescape")


def _pattern(text: str) -> re.Pattern[str]:
    """A name pattern. llama.cpp reads C++'s ECMAScript syntax; where Python's differs, it is refused here."""
    try:
        if "[[:" in text:
            raise InvalidInput(f"--tensor-type {text!r}: write 0-9 or a-z for a class like [:digit:]")
        return re.compile(text, re.ASCII)
    except re.error as error:
        raise InvalidInput(f"--tensor-type {text!r}: not a regular expression: {error}") from None


def _encodable(type: GGMLQuantizationType | None) -> GGMLQuantizationType | None:
    if type is not None and type in NOT_ENCODED:
        raise InvalidInput(f"{type.name} is not a type that weights can be quantized to")
    return type


def _require_fit(name: str, n_per_row: int, type: GGMLQuantizationType) -> None:
    block = type.block
    if n_per_row % block:
        raise InvalidInput(f"{name}: {n_per_row} columns do not fit {type.name} blocks of {block}; choose another type")


def _advice(name: str) -> str:
    return f"use --tensor-type {name.removesuffix('.weight').rpartition('.')[2]}=q8_0"
