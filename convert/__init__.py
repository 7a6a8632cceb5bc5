"""What each tensor of a checkpoint is called and means in GGUF: one small file an architecture."""
