"""Loading and generating through llama-cpp-python."""
