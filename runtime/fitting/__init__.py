"""Does a model fit: memory estimate, free memory, placement on devices, CPU probe."""
