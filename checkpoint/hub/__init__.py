"""Downloads and streams models from the Hugging Face Hub; no other modules of the package use the network."""
