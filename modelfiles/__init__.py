"""Ollama Modelfiles: written, and read back strictly."""
