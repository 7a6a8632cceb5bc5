"""Importance matrices for small checkpoints."""

from pathlib import Path

import gguf
import numpy as np

from borealis_gguf import plan_convert


def write_imatrix(path: Path, checkpoint: Path) -> Path:
    """An importance matrix for every matrix of the checkpoint."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for t in plan_convert(checkpoint).tensors:
        if len(t.tensor.shape) == 2:
            writer.add_tensor(f"{t.tensor.name}.in_sum2", np.ones((1, t.tensor.n_per_row), np.float32))
            writer.add_tensor(f"{t.tensor.name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
