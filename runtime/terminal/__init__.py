"""Chatting in a terminal."""
