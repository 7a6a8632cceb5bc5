"""borealis-gguf: from a checkpoint to running GGUFs in one pass."""
