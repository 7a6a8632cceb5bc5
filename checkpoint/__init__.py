"""Checkpoints, adapters and GGUFs, on disk or on the Hub: their headers, validated before anything else uses them."""
