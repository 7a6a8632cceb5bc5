"""One small module per architecture: tensor name rows, config.json fields, metadata keys."""
