"""Reads and validates the headers of checkpoints, LoRA adapters and GGUF files, on disk or on the Hub."""
