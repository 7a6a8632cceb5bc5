"""From a request to token ids: chat template, images, tool calls, sampling settings, context overflow."""
