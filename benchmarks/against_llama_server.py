"""Ours and llama-server, side by side in one run: one stream, eight streams, the first token after a known prefix.

    python benchmarks/against_llama_server.py FOLDER --server PATH/llama-server --bench PATH/llama-bench

The binaries must be of the llama.cpp that the installed llama-cpp-python holds. FOLDER keeps what is made once: random
weights in the shapes of Gemma 3 270m, and of 1b with fewer layers, both with the real vocabulary of 262144 tokens, as
Q8_0 and Q4_K_M; or name GGUF files with --model. Threads, batches (512), context, flash attention (auto), prompts
(token ids) and sampling are the same for all sides. Keys and values are F16 on both, except that ours takes BF16 for
several answers at once on the CPU; --cache f16 or bf16 makes them equal there too (without `serve`). Ours is asked
through the Python API with the model in this process (`api`) and in its own (`isolated`), and over HTTP (`serve`) as
llama-server is. Sides take turns; ratios are medians of the ratios of one turn, and of the best turns: on a machine
that others use, the latter tells more.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import records

from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.runtime.bench.answer_timing import (
    Generate,
    decode_rate,
    median_time_to_first_token,
    random_prompts,
    timed_concurrently,
)
from borealis_gguf.runtime.events import Finished, Options, Text
from borealis_gguf.runtime.fitting.cpu_probe import extra_buffers_work
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.usable_cores import usable_cores

MODELS = (("270m", 18), ("1b", 6))
PRESETS = ("Q8_0", "Q4_K_M")
SAMPLING = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0}}
BATCH_INVARIANT = {"default": None, "f16": False, "bf16": True}
"""Types of keys and values, as what `load` has for them."""
SHORT, END, BATCH = 16, 16, 512
THEIRS = "llama-server"
WANTED = {"alone": 0.97, "eight": 0.9, "prefix": 1.2}
"""Speeds at least, seconds at most, as a part of llama-server's."""


@dataclass(frozen=True)
class Setting:
    """What is equal for all sides."""

    model: Path
    parallel: int
    threads: int
    context: int
    server: Path
    extra_buffers: bool
    cache: str


Asking = Callable[[str], Generate]
"""From a name in SAMPLING to a way of asking."""


def asking_model(model: Model) -> Asking:
    def asking(sampling: str) -> Generate:
        def ask(prompt: Sequence[int], tokens: int) -> Iterator[int]:
            made = 0
            for event in model.complete(prompt, Options(max_tokens=tokens, sampling=SAMPLING[sampling])):
                made = event.usage.completion_tokens if isinstance(event, Finished) else made + isinstance(event, Text)
                yield made

        return ask

    return asking


def asking_server(port: int, more: dict[str, Any]) -> Asking:
    """Over HTTP with OpenAI's completions, a connection for each request."""

    def asking(sampling: str) -> Generate:
        def ask(prompt: Sequence[int], tokens: int) -> Iterator[int]:
            body = {
                "model": "", "prompt": list(prompt), "max_tokens": tokens, "stream": True,
                "stream_options": {"include_usage": True}, **SAMPLING[sampling], **more,
            }  # fmt: skip
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            with contextlib.closing(connection), connection.getresponse() as response:
                if response.status != 200:
                    sys.exit(f"{response.status}: {response.read().decode('utf-8', 'replace')}")
                yield from _counts(response)

        return ask

    return asking


def _counts(lines: http.client.HTTPResponse) -> Iterator[int]:
    made = 0
    while line := lines.readline():
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                sys.exit(chunk["error"])
            usage = chunk.get("usage")
            made = usage["completion_tokens"] if usage else made + any(c.get("text") for c in chunk["choices"])
            yield made


@contextmanager
def api(setting: Setting, isolate: bool) -> Iterator[Asking]:
    with load(
        setting.model, parallel=setting.parallel, threads=setting.threads, context=setting.context,
        extra_buffers=setting.extra_buffers, isolate=isolate, batch_invariant=BATCH_INVARIANT[setting.cache],
    ) as model:  # fmt: skip
        yield asking_model(model)


@contextmanager
def process(command: Sequence[str | Path], port: int, more: dict[str, Any]) -> Iterator[Asking]:
    """A server that runs; what it says goes nowhere."""
    env = dict(os.environ)
    if Path(command[0]).parent != Path(sys.executable).parent:
        env["LD_LIBRARY_PATH"] = str(Path(command[0]).parent)
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    ) as child:
        try:
            _until_healthy(child, port)
            yield asking_server(port, more)
        finally:
            child.terminate()
            child.wait()


def _until_healthy(child: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        if child.poll() is not None:
            sys.exit(f"{child.args}: ended with {child.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)
    sys.exit(f"{child.args}: is not healthy")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def llama_server(setting: Setting) -> contextlib.AbstractContextManager[Asking]:
    port = free_port()
    theirs = "bf16" if setting.cache == "bf16" else "f16"
    command: list[str | Path] = [
        setting.server, "-m", setting.model, "--port", str(port), "-np", str(setting.parallel), "--no-kv-unified",
        "-c", str(setting.context * setting.parallel), "-t", str(setting.threads), "-tb", str(setting.threads),
        "-b", str(BATCH), "-ub", str(BATCH), "-fa", "auto", "-ctk", theirs, "-ctv", theirs,
    ]  # fmt: skip
    more = {"ignore_eos": True, "cache_prompt": True, "samplers": ["top_k", "top_p", "min_p", "temperature"]}
    return process([*command, *([] if setting.extra_buffers else ["--no-repack"])], port, more)


def our_server(setting: Setting) -> contextlib.AbstractContextManager[Asking]:
    port = free_port()
    command: list[str | Path] = [
        sys.executable, "-c", "from borealis_gguf.cli.main import main; main()", "serve", setting.model, "--port",
        str(port), "--parallel", str(setting.parallel), "-c", str(setting.context), "-t", str(setting.threads),
    ]  # fmt: skip
    return process(command, port, {})


def sides(setting: Setting, wanted: Sequence[str]) -> dict[str, contextlib.AbstractContextManager[Asking]]:
    every: dict[str, Callable[[], contextlib.AbstractContextManager[Asking]]] = {
        "api": lambda: api(setting, False),
        "isolated": lambda: api(setting, True),
        "serve": lambda: our_server(setting),
        THEIRS: lambda: llama_server(setting),
    }
    there = find_spec("borealis_gguf.cli.serve") is not None and setting.cache == "default"
    return {name: make() for name, make in every.items() if name in wanted and (there or name != "serve")}


Turn = Callable[[Asking, int], float]
"""A measurement: the way of asking, and a number that no other turn had."""


def decoding(sampling: str, count: int, tokens: int, ids: Sequence[int]) -> Turn:
    def turn(asking: Asking, number: int) -> float:
        timings = timed_concurrently(asking(sampling), random_prompts(ids, count, SHORT, number), tokens)
        if short := [t.generated_tokens for t in timings if t.generated_tokens < 0.9 * tokens]:
            print(f"  an answer ended after {short[0]} tokens", file=sys.stderr)
        return decode_rate(timings)

    return turn


def first_token(length: int, ids: Sequence[int]) -> Turn:
    """Milliseconds, for the third prompt with a prefix of `length` tokens."""

    def turn(asking: Asking, number: int) -> float:
        prefix = random_prompts(ids, 1, length, number)[0]
        ask, ends = asking("greedy"), random_prompts(ids, 3, END, number + 1)
        return [1000 * median_time_to_first_token(timed_concurrently(ask, [prefix + end], 1)) for end in ends][-1]

    return turn


def take_turns(
    setting: Setting, turns: dict[str, Turn], repeats: int, wanted: Sequence[str], pause: float
) -> dict[str, dict[str, list[float]]]:
    """For each of `turns`, the values of each side."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in turns}
    with ExitStack() as stack:
        running = {name: stack.enter_context(side) for name, side in sides(setting, wanted).items()}
        warm = decoding("sampled", setting.parallel, 8, range(1000, 1100))
        for side in running.values():
            warm(side, 1)
        for repeat in range(repeats):
            order = sorted(running, key=lambda name: (list(running).index(name) + repeat) % len(running))
            for what, turn in turns.items():
                for name in order:
                    time.sleep(pause)
                    number = 1000 * (repeat + 1) + 10 * list(turns).index(what)
                    found[what].setdefault(name, []).append(turn(running[name], number))
                    print(f"  {what}, {name}: {found[what][name][-1]:.1f}", file=sys.stderr)
    return found


@dataclass(frozen=True)
class Row:
    """A measurement of one side against llama-server: medians, the median ratio, and that of the best turns."""

    model: str
    what: str
    side: str
    ours: float
    theirs: float
    ratio: float
    best: float
    wanted: float

    @property
    def good(self) -> bool:
        return self.ratio <= self.wanted if self.wanted > 1 else self.ratio >= self.wanted


def rows(model: Path, found: dict[str, dict[str, list[float]]]) -> Iterator[Row]:
    for what, values in found.items():
        theirs = values[THEIRS]
        for side in (name for name in values if name != THEIRS):
            ratio = statistics.median(mine / other for mine, other in zip(values[side], theirs, strict=True))
            middle = statistics.median(values[side]), statistics.median(theirs)
            best = min if what == "prefix" else max
            fastest = best(values[side]) / best(theirs)
            yield Row(model.stem, what, side, *middle, ratio, fastest, WANTED[what.split()[0]])


def llama_bench(bench: Path, model: Path, args: argparse.Namespace, extra_buffers: bool) -> dict[str, float]:
    """Tokens per second of prefill and decode, without sampling."""
    command = [
        bench, "-m", model, "-p", args.prefix, "-n", args.tokens, "-t", args.threads, "-b", BATCH, "-ub", BATCH,
        "-r", args.repeats, "-fa", "auto", "--repack", int(extra_buffers), "-o", "json",
    ]  # fmt: skip
    env = {**os.environ, "LD_LIBRARY_PATH": str(bench.parent)}
    done = subprocess.run(list(map(str, command)), capture_output=True, check=True, env=env)
    return {"decode" if test["n_gen"] else "prefill": test["avg_ts"] for test in json.loads(done.stdout)}


def made_models(folder: Path) -> list[Path]:
    """Random weights in real shapes, made if they are not there."""
    from borealis_gguf.api import execute, plan_quantize

    paths = []
    for size, layers in MODELS:
        missing = [preset for preset in PRESETS if not (folder / f"{size}-{layers}-{preset}.gguf").exists()]
        if missing:
            from shapes import write_checkpoint

            write_checkpoint(folder / f"{size}-{layers}", size, layers)
            execute(plan_quantize(folder / f"{size}-{layers}", missing, folder))
        paths += [folder / f"{size}-{layers}-{preset}.gguf" for preset in PRESETS]
    return paths


def record_rows(model: Path, found: dict[str, dict[str, list[float]]]) -> list[records.Row]:
    """The values of each side for a record: milliseconds to the first token, tokens per second otherwise."""
    units = {what: "ms" if what == "prefix" else "tokens/s" for what in found}
    return [
        records.row(f"{model.stem}, {what}", side, units[what], values)
        for what, sides in found.items()
        for side, values in sides.items()
    ]


def measure(model: Path, args: argparse.Namespace) -> tuple[list[Row], list[records.Row]]:
    ids = range(1000, len(read_gguf(model).value("tokenizer.ggml.tokens")))
    extra = extra_buffers_work()
    found: dict[str, dict[str, list[float]]] = {}
    for parallel in (1, args.parallel):
        room = args.prefix + END if parallel == 1 else 0
        context = -(-max(room, SHORT + args.tokens) // 256) * 256 + 256
        setting = Setting(model, parallel, args.threads, context, args.server, extra, args.cache)
        name = "alone" if parallel == 1 else "eight"
        turns = {f"{name} {kind}": decoding(kind, parallel, args.tokens, ids) for kind in SAMPLING}
        if parallel == 1:
            turns["prefix"] = first_token(args.prefix, ids)
        found |= take_turns(setting, turns, args.repeats, args.sides, args.pause)
    return list(rows(model, found)), record_rows(model, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--model", type=Path, action="append", help="a GGUF; repeatable")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--prefix", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before each turn, for threads to fall asleep")
    parser.add_argument("--sides", nargs="+", default=["api", "isolated", "serve"])
    parser.add_argument("--cache", choices=list(BATCH_INVARIANT), default="default", help="types of keys and values")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    records.add_option(parser, "against_llama_server")
    args = parser.parse_args()
    args.sides = [*args.sides, THEIRS]
    args.folder.mkdir(parents=True, exist_ok=True)
    print(f"{'model':18} {'what':14} {'side':9} {'ours':>8} {'theirs':>8} {'ratio':>6} {'best':>6}  wanted")
    every: list[dict[str, Any]] = []
    recorded: list[records.Row] = []
    for model in args.model or made_models(args.folder):
        if args.bench:
            bench = llama_bench(args.bench, model, args, extra_buffers_work())
            every.append({"model": model.stem, "llama-bench": bench})
            print(f"{model.stem:18} llama-bench: prefill {bench['prefill']:.1f} t/s, decode {bench['decode']:.1f} t/s")
        compared, measured = measure(model, args)
        recorded += measured
        for row in compared:
            every.append({**vars(row), "good": row.good})
            verdict = f"{'<=' if row.wanted > 1 else '>='} {row.wanted} {'' if row.good else 'MISSED'}"
            figures = f"{row.ours:8.1f} {row.theirs:8.1f} {row.ratio:6.3f} {row.best:6.3f}"
            print(f"{row.model:18} {row.what:14} {row.side:9} {figures}  {verdict}".rstrip(), flush=True)
    records.save(args, recorded, {"threads": args.threads})
    if args.json:
        args.json.write_text(json.dumps(every, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
