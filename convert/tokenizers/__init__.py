"""Tokenizers as GGUF metadata: SentencePiece and byte-level BPE."""
