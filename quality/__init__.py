"""Is a GGUF what its checkpoint is? Measured, never assumed."""
