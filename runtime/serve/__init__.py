"""A model behind HTTP, as OpenAI's API has it."""
