"""Compares the weights of a GGUF with those of its source."""
