"""How fast weights are encoded: the kernels of each instruction set against ggml's encoders, in turn, bytes compared.

    python benchmarks/encoder_speed.py --record

Million weights a second on one thread, without and with importance. Some minutes.
"""

import argparse
from collections import defaultdict

import records

from borealis_gguf.quantize.encoders.benchmark import bench_encoders
from borealis_gguf.quantize.encoders.native import ISAS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="per measurement")
    records.add_option(parser, "encoder_speed")
    args = parser.parse_args()
    speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    equal = True
    for _ in range(args.runs):
        for speed in bench_encoders(seconds=args.seconds, repetitions=1):
            if speed.isa is None or speed.native is None:
                continue
            case = f"{speed.type.name}, {'with' if speed.importance else 'without'} importance"
            speeds[case, speed.isa].append(speed.native / 1e6)
            if speed.isa == ISAS[0]:
                speeds[case, "ggml"].append(speed.ggml / 1e6)
            equal &= speed.equal
    rows = [records.row(case, side, "million weights/s", values) for (case, side), values in speeds.items()]
    for row in rows:
        print(f"{row['what']:28} {row['side']:9} {row['median']:9.1f}  {row['min']:9.1f} to {row['max']:9.1f}")
    print("the same bytes:", equal)
    records.save(args, rows, {"the same bytes": equal})
    return int(not equal)


if __name__ == "__main__":
    raise SystemExit(main())
