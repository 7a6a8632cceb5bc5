"""The sample that ours and ggml's encoders must encode alike, and the digests of what ggml on x86-64 makes of it."""

from functools import cache

import numpy as np


@cache
def sample_bytes() -> bytes:
    """The sample as bytes, which tell it from the sample of another version."""
    return b"".join(array.tobytes() for array in sample_weights())


def sample_weights() -> tuple[np.ndarray, np.ndarray]:
    """Weights [9, 512] of many kinds and an importance [512], made by integer arithmetic: the same everywhere."""
    state = np.arange(9 * 512, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(29)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    bits = (state >> np.uint64(32)).astype(np.int64).reshape(9, 512)
    signed = (bits % 2001 - 1000).astype(np.float32) * (bits >> 11 & 1023).astype(np.float32)
    rows = signed * np.float32(2.0**-24)
    rows[1] = np.abs(rows[1])
    rows[2] = -np.abs(rows[2])
    rows[3] *= bits[3] % 8 == 0
    rows[4] = (bits[4] % 17 - 8).astype(np.float32) / 8
    rows[5] = -0.75
    rows[6, ::37] = 32.0
    rows[7] *= np.float32(2.0**-20)
    rows[8] = np.ldexp(rows[8], np.repeat(bits[8, :16] % 24 - 16, 32))
    importance = (bits[0] % 977).astype(np.float32) / 1024
    return rows, importance


SAMPLE_DIGESTS: dict[str, str] = {
    "F32": "e8d69160ead65025",
    "F16": "c5472b62e0c20d32",
    "Q4_0": "ef98f1a4f9a38c25",
    "Q4_1": "ef599cf8780accdd",
    "Q5_0": "57c20773b6f5934d",
    "Q5_1": "3c7f8490dfaac5d4",
    "Q8_0": "c32886b778107848",
    "Q2_K": "c672558921b96a53",
    "Q3_K": "50a0bfed663b267e",
    "Q4_K": "0c4b5b59ab67e348",
    "Q5_K": "fcd66d64b57d5f8a",
    "Q6_K": "342db3c2f51c390d",
    "IQ2_XXS": "45928591d602db24",
    "IQ2_XS": "88850b113bb32e91",
    "IQ3_XXS": "acb73ddc79a48fa8",
    "IQ1_S": "c623f12ce6a3b757",
    "IQ4_NL": "201fc3c1d196d130",
    "IQ3_S": "a2e87ed7affc3d81",
    "IQ2_S": "11ba37592c48d168",
    "IQ4_XS": "d266b90fb93736f8",
    "IQ1_M": "cc3e96b974aa5eec",
    "BF16": "4d43d452cae3374f",
    "TQ1_0": "3cae83a7d65dcc82",
    "TQ2_0": "b9372e4ad839a6e4",
    "MXFP4": "6ce9e8c7d48a1463",
}
"""`native.sample_digest` of the reference, ggml on x86-64, by type."""
