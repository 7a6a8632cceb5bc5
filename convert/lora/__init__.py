"""LoRA adapters: merged into a model, or written as a GGUF file of their own."""
