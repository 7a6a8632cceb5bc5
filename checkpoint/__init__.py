"""What exists on disk or on the Hub, validated before anything is believed."""
