"""Where a model runs: in this process, or in a worker process of its own."""
