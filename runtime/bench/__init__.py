"""Speed measurements of a model, each in a process of its own."""
