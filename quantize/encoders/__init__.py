"""Encoders from float32 rows to GGML types: native kernels, ggml's own, and the choice between them."""
