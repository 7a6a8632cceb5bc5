"""One small module an architecture: tensor name rows, settings of config.json, metadata keys."""
