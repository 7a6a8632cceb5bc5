"""Continuous batching: the scheduler, its slots, and the image encoder's queue."""
