"""Plan, then execute: the only room that writes GGUF. Knows no architecture and no preset."""
