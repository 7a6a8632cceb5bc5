"""From a request to token ids: chat template, images, tools, sampling, context overflow."""
