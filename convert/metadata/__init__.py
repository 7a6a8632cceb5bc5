"""Reads general metadata, the model card and the chat template."""
