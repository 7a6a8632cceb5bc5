"""Compares token ids, special tokens, vocabulary and rendered chat templates with the checkpoint's own."""
