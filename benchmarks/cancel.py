"""How long a cancelled answer goes on: in decode, beside prefill of others, in its own prefill, and isolated.

    python benchmarks/cancel.py FOLDER [--repeats 20]

FOLDER keeps what is made once: random weights in the shape of Gemma 3 270m with 262144 tokens, as Q8_0; or name a GGUF
with --model. Told is the time from cancel() to the Finished event, free that until nothing is computed for the answer
any more (in this process only, as seen every millisecond); beside them stands what one token takes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import records

from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.runtime.answer import Answer
from borealis_gguf.runtime.bench.answer_timing import random_prompts
from borealis_gguf.runtime.events import Finished, Options
from borealis_gguf.runtime.model import Model, load

SHORT, LONG, OTHERS = 16, 2000, 300
GREEDY = {"temperature": 0.0}

Place = Callable[[Model, int], tuple[Answer, list[Answer]]]
"""Bring an answer to where it is to be cancelled; a number no other call had. Gives it, and the others."""


def model_file(folder: Path) -> Path:
    """Made if it is not there."""
    path = folder / "270m-18-Q8_0.gguf"
    if not path.exists():
        from shapes import write_checkpoint

        from borealis_gguf.api import execute, plan_quantize

        write_checkpoint(folder / "270m-18", "270m", 18)
        execute(plan_quantize(folder / "270m-18", ["Q8_0"], folder))
    return path


def asked(model: Model, ids: range, length: int, number: int, tokens: int) -> Answer:
    prompt = random_prompts(ids, 1, length, number)[0]
    return model.complete(prompt, Options(max_tokens=tokens, sampling=GREEDY))


def places(ids: range) -> Iterator[tuple[str, bool, Place]]:
    """Name, whether in a process of its own, and the way there."""

    def decoding(model: Model, number: int) -> tuple[Answer, list[Answer]]:
        answer = asked(model, ids, SHORT, number, 1000)
        for _ in range(5):
            next(answer)
        return answer, []

    def beside(model: Model, number: int) -> tuple[Answer, list[Answer]]:
        answer, _ = decoding(model, number)
        others = [asked(model, ids, OTHERS, number + n, 1) for n in (1, 2)]
        time.sleep(0.1)  # into their prompts
        return answer, others

    def inside(model: Model, number: int) -> tuple[Answer, list[Answer]]:
        answer = asked(model, ids, LONG, number, 10)
        time.sleep(0.1)
        return answer, []

    for isolate in (False, True):
        how = ", isolated" if isolate else ""
        yield f"decode alone{how}", isolate, decoding
        yield f"decode beside two prefills{how}", isolate, beside
        yield f"in its own prefill{how}", isolate, inside


def cancelled(model: Model, place: Place, number: int, watched: bool) -> tuple[float, float | None]:
    """Milliseconds until it was told, and until its place was free."""
    answer, others = place(model, number)
    active = model.stats()["active"] if watched else 0
    begun = time.perf_counter()
    answer.cancel()
    *_, last = answer
    told = time.perf_counter()
    if not (isinstance(last, Finished) and last.reason == "cancelled"):
        raise SystemExit(f"it was over before: {last}")
    while watched and model.stats()["active"] >= active:
        time.sleep(0.001)
    free = time.perf_counter()
    for other in others:
        other.cancel()
    while model.stats()["active"]:
        time.sleep(0.001)
    return 1000 * (told - begun), 1000 * (free - begun) if watched else None


def token_time(model: Model, ids: range) -> float:
    """Milliseconds a token takes, alone."""
    answer = asked(model, ids, SHORT, 1, 60)
    next(answer)
    begun = time.perf_counter()
    count = sum(1 for _ in answer)
    return 1000 * (time.perf_counter() - begun) / count


def row(name: str, token: float, times: list[tuple[float, float | None]]) -> dict[str, Any]:
    told = [t for t, _ in times]
    free = [f for _, f in times if f is not None]
    return {
        "place": name, "token_ms": token, "told_ms": statistics.median(told), "told_worst_ms": max(told),
        "free_ms": statistics.median(free) if free else None, "free_worst_ms": max(free) if free else None,
        "within": max(told) <= token + 50,
    }  # fmt: skip


def record_rows(name: str, token: float, times: list[tuple[float, float | None]]) -> list[records.Row]:
    """The same for a record, in milliseconds."""
    free = [f for _, f in times if f is not None]
    rows = [records.row(name, "one token", "ms", [token]), records.row(name, "told", "ms", [t for t, _ in times])]
    return [*rows, *([records.row(name, "free", "ms", free)] if free else [])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write all figures there too")
    records.add_option(parser, "cancel")
    args = parser.parse_args()
    path = args.model or model_file(args.folder)
    ids = range(1000, len(read_gguf(path).value("tokenizer.ggml.tokens")))
    rows, recorded = [], []
    print(f"{'':40} {'token':>7} {'told':>7} {'worst':>7} {'free':>7} {'worst':>7}  ms")
    for isolate in (False, True):
        with load(path, parallel=3, threads=args.threads, context=4096, isolate=isolate) as model:
            token = token_time(model, ids)
            for name, here, place in places(ids):
                if here == isolate:
                    times = [cancelled(model, place, 100 * (n + 1), not isolate) for n in range(args.repeats)]
                    rows.append(row(name, token, times))
                    recorded += record_rows(name, token, times)
                    figures = [rows[-1][key] for key in list(rows[-1])[1:6]]
                    print(f"{name:40} " + " ".join("      -" if f is None else f"{f:7.1f}" for f in figures))
    records.save(args, recorded)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(not all(row["within"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
