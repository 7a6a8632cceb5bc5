"""Writes Ollama Modelfiles, and reads them back strictly."""
