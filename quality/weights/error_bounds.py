"""Error bounds: how far the weights of each type may lie from their source.

`TYPICAL` is the relative error, |decoded - source| / |source| over a tensor, of ggml's encoders on bell-shaped weights:
the largest that was measured on normal weights (1024 columns, 96 rows) and on the matrices of a trained model, with and
without an importance matrix. `tests/quality/test_error_bounds.py` measures it again.

The table only selects suspicious rows: weights of another distribution (a few large outliers, many zeros) have larger
errors, and lattice types on sparse rows much larger ones. Rows above the limit are encoded again, and pass if their
error is about that of the new encoding.
"""

from ...checkpoint.types import GGMLQuantizationType

T = GGMLQuantizationType

TYPICAL = {
    T.F32: 0.0,
    T.F16: 0.00024,
    T.BF16: 0.0018,
    T.Q8_0: 0.0056,
    T.Q6_K: 0.0186,
    T.Q5_K: 0.0376,
    T.Q5_1: 0.039,
    T.Q5_0: 0.0435,
    T.Q4_K: 0.0756,
    T.IQ4_NL: 0.0785,
    T.IQ4_XS: 0.079,
    T.Q4_1: 0.08,
    T.Q4_0: 0.088,
    T.NVFP4: 0.104,
    T.MXFP4: 0.119,
    T.Q3_K: 0.154,
    T.IQ3_S: 0.169,
    T.IQ3_XXS: 0.216,
    T.IQ2_S: 0.269,
    T.Q2_K: 0.303,
    T.IQ2_XS: 0.326,
    T.IQ2_XXS: 0.369,
    T.IQ1_S: 0.53,
    T.IQ1_M: 0.59,
    T.Q1_0: 0.605,
    T.Q2_0: 0.74,
    T.TQ1_0: 0.83,
    T.TQ2_0: 0.83,
}

SLACK = 1.3
"""Over TYPICAL: heavier tails than normal, and samples of a few rows."""

ALIKE = 1.25
"""How many times the error of our own encoding a row may have: other encoders round in other ways."""

ALIKE_WEIGHTED = 2.5
"""The same where an importance matrix that is not at hand weighted the errors."""

FLOAT16_STEP = 2.0**-25
"""Half the distance between the smallest float16 numbers. Scales are float16, so tiny weights cannot be closer."""

STEPS = 4096
"""By how many such steps one weight may be off: 6 bits of scale times 6 bits of weight."""


def limit(type: GGMLQuantizationType) -> float:
    """The relative error above which a row is encoded again."""
    return TYPICAL.get(type, 1.0) * SLACK


def scale_limit(type: GGMLQuantizationType) -> float:
    """How far from 1 the factor between decoded and source weights may be.

    An optimal encoder shrinks weights by the square of its relative error; the rest of the bound is for chance.
    """
    typical = TYPICAL.get(type, 1.0)
    return max(1.5 * typical**2, 0.1 * typical)


def floor(type: GGMLQuantizationType) -> float:
    """The absolute error per weight that the type's float16 scales can cause; 0 for types without such scales."""
    if type in (T.F32, T.BF16):
        return 0.0
    return FLOAT16_STEP * (1 if type == T.F16 else STEPS)
