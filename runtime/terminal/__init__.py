"""The chat in a terminal: loop, slash commands, input and output."""
