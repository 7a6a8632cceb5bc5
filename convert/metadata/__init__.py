"""General metadata, the model card, and the chat template."""
