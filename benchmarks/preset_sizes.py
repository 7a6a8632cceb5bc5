"""File size and bits per weight of every preset for the five Borealis shapes, from plans alone.

    python benchmarks/preset_sizes.py --record

Sizes hold for the text model with a vocabulary of 262144 made-up pieces; a real one differs by some megabytes.
"""

import argparse
import tempfile
from pathlib import Path

import gguf
import numpy as np
import records
from shapes import SIZES, write_checkpoint

from borealis_gguf import plan_convert, plan_quantize
from borealis_gguf.quantize.presets import PRESETS


def write_imatrix(path: Path, folder: Path) -> Path:
    """An importance matrix that names every tensor: the low-bit presets are not planned without one."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for t in plan_convert(folder).tensors:
        if len(t.tensor.shape) == 2 and t.tensor.name != "token_embd.weight":
            writer.add_tensor(f"{t.tensor.name}.in_sum2", np.ones((1, t.tensor.n_per_row), np.float32))
            writer.add_tensor(f"{t.tensor.name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    records.add_option(parser, "preset_sizes")
    args = parser.parse_args()
    recorded: list[records.Row] = []
    facts: dict[str, str] = {}
    names = [preset.name for preset in PRESETS if preset.type is not None]
    rows: dict[str, list[str]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            folder = Path(temporary, f"borealis-{size}")
            write_checkpoint(folder, size, sparse=True)
            imatrix = write_imatrix(Path(temporary, f"{size}.gguf"), folder)
            for plan in plan_quantize(str(folder), names, Path(temporary), imatrix=imatrix):
                rows[plan.label].append(f"{plan.size / 1e9:.2f} GB ({plan.bits_per_weight:.2f})")
                if plan.label == "Q4_K_M":
                    facts[size] = f"{sum(t.requested is not None for t in plan.tensors)} of {len(plan.tensors)}"
                recorded.append(records.row(plan.label, size, "GB", [plan.size / 1e9]))
                recorded.append(records.row(plan.label, size, "bits per weight", [plan.bits_per_weight]))
    print("| preset |", " | ".join(SIZES), "|")
    print("|---|" + "---|" * len(SIZES))
    for name, cells in rows.items():
        print(f"| {name} |", " | ".join(cells), "|")
    records.save(args, recorded, facts)


if __name__ == "__main__":
    main()
