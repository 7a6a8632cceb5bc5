"""Merges LoRA adapters into a model, or writes them as GGUF adapter files."""
