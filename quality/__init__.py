"""Checks whether a GGUF is what its source is: metadata, weights, tokenizer parity, chat template and logits."""
