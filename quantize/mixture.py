"""The mixtures: which tensors of a preset get another type than the preset's own.

The rules are llama.cpp's (src/llama-quant.cpp), as rows: for these presets, where this holds, this type; the first row
that applies wins, and without one the preset's type stays. Divisions are of integers, as there.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..checkpoint.types import GGMLQuantizationType
from ..errors import InvalidInput

T = GGMLQuantizationType

OUTPUT, TOKEN_EMBD, V, K, Q, ATTN_OUTPUT, UP, GATE, DOWN, OTHER = [
    "output",
    "token_embd",
    "v",
    "k",
    "q",
    "attn_output",
    "up",
    "gate",
    "down",
    "other",
]

_PARTS = (
    ("attn_qkv.weight", V),
    ("attn_kv_b.weight", V),
    ("attn_v.weight", V),
    ("attn_k.weight", K),
    ("attn_q.weight", Q),
    ("attn_output.weight", ATTN_OUTPUT),
    ("ffn_up", UP),
    ("ffn_gate", GATE),
    ("ffn_down", DOWN),
)

TOKEN_EMBD_NAMES = ("token_embd.weight", "per_layer_token_embd.weight")
LATTICE_PRESETS = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})

_SIZE_70B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
"""Block counts that llama.cpp takes for a 70B model."""


def category(name: str) -> str:
    """The kind of a tensor, by its name. V is every tensor that holds values: attn_v, attn_qkv, attn_kv_b."""
    if name == "output.weight":
        return OUTPUT
    if name in TOKEN_EMBD_NAMES:
        return TOKEN_EMBD
    return next((kind for part, kind in _PARTS if part in name), OTHER)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the rules need to know of a model. Head counts are the first layer's; dense models have 0 experts."""

    arch: str
    block_count: int
    head_count: int
    head_count_kv: int
    expert_count: int = 0

    @property
    def gqa(self) -> int:
        return self.head_count // self.head_count_kv if self.head_count_kv else 0

    @property
    def is_70b(self) -> bool:
        if self.arch == "llama" and (self.expert_count == 8 or self.head_count == self.head_count_kv):
            return False
        return _SIZE_70B.get(self.arch) == self.block_count


@dataclass(frozen=True, slots=True)
class TensorContext:
    """What a rule's condition is given about a tensor: its model, and that it is in layer `i` of `n`."""

    model: ModelShape
    has_imatrix: bool
    i: int = 0
    n: int = 0

    @property
    def falcon(self) -> bool:
        return self.model.arch == "falcon"

    @property
    def experts8(self) -> bool:
        return self.model.expert_count == 8


Condition = Callable[[TensorContext], bool]


def always(_: TensorContext) -> bool:
    return True


def more_bits(t: TensorContext) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return t.i < t.n // 8 or t.i >= 7 * t.n // 8 or (t.i - t.n // 8) % 3 == 2


def first_eighth(t: TensorContext) -> bool:
    return t.i < t.n // 8


def first_sixteenth(t: TensorContext) -> bool:
    return t.i < t.n // 16


def middle(t: TensorContext) -> bool:
    return t.n // 8 <= t.i < 7 * t.n // 8


def gqa4(t: TensorContext) -> bool:
    """Four query heads or more share one value head: its tensor is small, and matters."""
    return t.model.gqa >= 4


def falcon(t: TensorContext) -> bool:
    return t.falcon


def experts8(t: TensorContext) -> bool:
    return t.experts8


def no_imatrix(t: TensorContext) -> bool:
    return not t.has_imatrix


@dataclass(frozen=True, slots=True)
class Rule:
    presets: frozenset[str]
    where: Condition
    type: T


def _rules(*rows: tuple[str, Condition, T]) -> tuple[Rule, ...]:
    return tuple(Rule(frozenset(presets.split()), where, type) for presets, where, type in rows)


def both(*conditions: Condition) -> Condition:
    return lambda t: all(condition(t) for condition in conditions)


def neither(*conditions: Condition) -> Condition:
    return lambda t: not any(condition(t) for condition in conditions)


_LATTICE_ROWS = {
    V: _rules(
        (" ".join(LATTICE_PRESETS), lambda t: gqa4(t) or t.model.expert_count >= 4, T.Q4_K),
        ("IQ2_S IQ2_M", always, T.IQ3_S),
        ("IQ1_S IQ1_M IQ2_XXS IQ2_XS", always, T.Q2_K),
    ),
    K: _rules((" ".join(LATTICE_PRESETS), experts8, T.Q4_K)),
    DOWN: _rules(
        ("IQ2_S IQ2_M", first_eighth, T.IQ3_S),
        ("IQ1_S IQ1_M IQ2_XXS IQ2_XS", first_eighth, T.Q2_K),
    ),
    ATTN_OUTPUT: _rules(
        (" ".join(LATTICE_PRESETS), experts8, T.Q5_K),
        ("IQ1_S IQ1_M", always, T.IQ2_XXS),
        ("IQ2_S IQ2_M", always, T.IQ3_S),
    ),
}

_ROWS = {
    TOKEN_EMBD: _rules(
        ("IQ1_S IQ1_M IQ2_XXS IQ2_XS", always, T.Q2_K),
        ("IQ2_S IQ2_M IQ3_XXS", always, T.IQ3_S),
        ("TQ1_0 TQ2_0 Q2_0", always, T.Q4_K),
    ),
    V: _rules(
        ("Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S", gqa4, T.Q4_K),
        ("Q2_K", always, T.Q3_K),
        ("IQ3_XXS", no_imatrix, T.IQ3_S),
        ("IQ3_M", always, T.Q4_K),
        ("Q3_K_M", lambda t: t.i < 2, T.Q5_K),
        ("Q3_K_M", always, T.Q4_K),
        ("Q3_K_L", always, T.Q5_K),
        ("IQ4_NL IQ4_XS", gqa4, T.Q5_K),
        ("Q4_K_M Q5_K_M", more_bits, T.Q6_K),
        ("Q4_K_S", lambda t: t.i < 4, T.Q5_K),
    ),
    K: _rules(
        ("IQ3_XS", always, T.IQ3_XXS),
        ("IQ3_XXS", always, T.IQ2_S),
    ),
    Q: _rules(
        ("IQ3_XS", always, T.IQ3_XXS),
        ("IQ3_XXS", always, T.IQ2_S),
    ),
    DOWN: _rules(
        ("Q2_K", always, T.Q3_K),
        ("Q2_K_S", first_eighth, T.Q4_K),
        ("IQ3_XXS", both(no_imatrix, first_eighth), T.Q4_K),
        ("IQ3_XXS", no_imatrix, T.Q3_K),
        ("Q3_K_M", first_sixteenth, T.Q5_K),
        ("Q3_K_M", lambda t: not t.falcon or more_bits(t), T.Q4_K),
        ("IQ3_M", lambda t: first_eighth(t) or (t.experts8 and more_bits(t)), T.Q4_K),
        ("Q3_K_L", falcon, T.Q4_K),
        ("Q3_K_L", always, T.Q5_K),
        ("Q4_K_M", both(falcon, first_sixteenth), T.Q6_K),
        ("Q4_K_M", both(falcon, more_bits), T.Q5_K),
        ("Q4_K_M", both(neither(falcon), more_bits), T.Q6_K),
        ("IQ4_NL IQ4_XS", both(no_imatrix, first_eighth), T.Q5_K),
        ("Q5_K_M", more_bits, T.Q6_K),
        ("Q4_K_S", both(neither(falcon), first_eighth), T.Q5_K),
        ("Q4_0", both(neither(no_imatrix), first_eighth), T.Q4_1),
        ("Q5_0", both(neither(no_imatrix), first_eighth), T.Q5_1),
    ),
    ATTN_OUTPUT: _rules(
        (
            "Q2_K Q3_K_S Q3_K_M Q4_K_S Q4_K_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS",
            both(experts8, neither(falcon)),
            T.Q5_K,
        ),
        ("Q3_K_L", falcon, T.Q4_K),
        ("Q2_K", neither(experts8, falcon), T.Q3_K),
        ("IQ3_XXS", neither(experts8, falcon), T.IQ3_S),
        ("Q3_K_M IQ3_M", neither(experts8, falcon), T.Q4_K),
        ("Q3_K_L", neither(experts8, falcon), T.Q5_K),
    ),
    GATE: _rules(("IQ3_XS", middle, T.IQ3_XXS)),
    UP: _rules(("IQ3_XS", middle, T.IQ3_XXS)),
}


@dataclass(slots=True)
class Mixture:
    """Applies the rules to the tensors of one file, one after another. `base` is the preset's own type.

    `of_v` counts the file's V tensors; `tied`: it has no output.weight, so the embedding serves as one. `seen` counts
    the tensors of a kind that came before: it advances only when the mixture decides, not for an override.
    """

    preset: str
    base: T
    model: ModelShape
    has_imatrix: bool
    output_type: T | None
    of_v: int
    tied: bool
    seen: dict[str, int] = field(default_factory=lambda: dict.fromkeys((V, UP, GATE, DOWN), 0))

    def type(self, name: str, shape: tuple[int, ...]) -> T:
        """The type of the next tensor, whether its rows fit that or not."""
        kind, model = category(name), self.model
        if model.arch == "glm5-next" and any(part in name for part in ("attn_q_a", "attn_q_b", "nextn.eh_proj")):
            return T.Q8_0
        if kind == OUTPUT or (kind == TOKEN_EMBD and self.tied):
            return self._output(shape[-1]) if self.output_type is None else self.output_type
        if self.preset == "MXFP4_MOE":
            return T.MXFP4 if _is_expert(shape, kind, model) else T.Q8_0
        if self.preset in LATTICE_PRESETS and kind != TOKEN_EMBD:
            i = self._step(kind) if kind in (V, DOWN) else 0
            return self._apply(_LATTICE_ROWS, kind, i, model.block_count)
        i, n = self._layer(kind, name)
        if kind in (V, K) and model.expert_count == 8:
            return T.Q8_0
        type = self._apply(_ROWS, kind, i, n)
        return T.Q5_K if kind == V and model.is_70b and type in (T.Q3_K, T.Q4_K) else type

    def _output(self, n_per_row: int) -> T:
        """The type of the output matrix, or of the embedding that serves as one: it gets more bits than the rest."""
        if self.preset == "MXFP4_MOE" or self.model.arch == "falcon" or n_per_row % self.base.block:
            return T.Q8_0
        if self.preset in LATTICE_PRESETS or self.preset == "IQ3_XXS":
            return T.Q5_K
        return self.base if self.base == T.Q8_0 else T.Q6_K

    def _apply(self, rows: dict[str, tuple[Rule, ...]], kind: str, i: int, n: int) -> T:
        context = TensorContext(self.model, self.has_imatrix, i, n)
        matching = (r.type for r in rows.get(kind, ()) if self.preset in r.presets and r.where(context))
        return next(matching, self.base)

    def _layer(self, kind: str, name: str) -> tuple[int, int]:
        """(layer, layers) of a tensor: counted for dense models, read from the name for mixtures of experts."""
        if kind == V:
            return self._step(V), self.of_v
        if kind not in (UP, GATE, DOWN):
            return 0, 0
        i, n = self._step(kind), self.model.block_count
        if self.model.expert_count > 1:
            i = block_of(name)
            if not 0 <= i < n:
                raise InvalidInput(f"{name}: says no block from 0 to {n - 1}, which a mixture of experts needs")
        return i, n

    def _step(self, kind: str) -> int:
        self.seen[kind] += 1
        return self.seen[kind] - 1


def block_of(name: str) -> int:
    """The block number in a tensor's name, -1 for a tensor outside of the blocks."""
    found = re.match(r"blk\.[ \t\n\v\f\r]*([+-]?[0-9]{1,9})", name)
    return int(found[1]) if found else -1


def _is_expert(shape: tuple[int, ...], kind: str, model: ModelShape) -> bool:
    stacked = len(shape) > 2 and shape[-3] > 1
    return stacked and (model.arch != "bailingmoe3" or kind in (UP, GATE, DOWN))
