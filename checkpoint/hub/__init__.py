"""Models on the Hugging Face Hub: the only modules of the package that use the network."""
