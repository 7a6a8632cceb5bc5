"""Converts SentencePiece and byte-level BPE tokenizers to GGUF metadata."""
