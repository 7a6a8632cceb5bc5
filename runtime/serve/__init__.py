"""The HTTP server: OpenAI's API, and the chat page."""
