"""Speed of a model: prefill, decode, time to first token; each measured in a child process."""
