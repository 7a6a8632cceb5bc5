"""A second reading of the checkpoint, independent of convert, compared with the GGUF."""
