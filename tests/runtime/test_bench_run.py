"""`bench run`: real measurements of a small model, and the arithmetic of timings."""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from borealis_gguf.errors import BorealisError, EngineDied, InvalidInput
from borealis_gguf.runtime.bench import model_speed
from borealis_gguf.runtime.bench.answer_timing import (
    Timing,
    decode_rate,
    median_time_to_first_token,
    prefill_rate,
    random_prompts,
    timed_answer,
    timed_concurrently,
)
from borealis_gguf.runtime.bench.model_speed import ModelSpeed, bench_run
from borealis_gguf.runtime.bench.peak_memory import peak_memory
from borealis_gguf.runtime.bench.speed_worker import disable_end_tokens, generator_of, text_token_ids
from borealis_gguf.runtime.model import load

from ..cli.test_cli import run
from ..helpers.asking import encode, local


def test_rates_and_times_of_answers() -> None:
    timings = [Timing(0.0, 1.0, 5.0, 100, 41), Timing(0.5, 2.0, 3.0, 60, 21), Timing(0.5, 0.75, 3.0, 40, 1)]
    assert decode_rate(timings) == (40 + 20) / (5.0 - 0.75)
    assert prefill_rate(timings) == 200 / 2.0
    assert median_time_to_first_token(timings) == 1.0
    assert decode_rate([Timing(0.0, 1.0, 1.0, 9, 1)]) == 0.0


def test_answers_are_timed_concurrently() -> None:
    def ask(prompt: Sequence[int], tokens: int) -> Iterator[int]:
        time.sleep(0.1 * prompt[0])
        yield 1
        time.sleep(0.1)
        yield tokens

    began = time.perf_counter()
    timings = timed_concurrently(ask, [[1], [2, 2], [3]], 7)
    assert time.perf_counter() - began < 0.8  # one after another they take 0.9
    assert [(t.prompt_tokens, t.generated_tokens) for t in timings] == [(1, 7), (2, 7), (1, 7)]
    assert all(0.099 * n <= t.time_to_first_token < 0.1 * n + 0.4 for n, t in enumerate(timings, 1))
    assert all(0.099 <= t.last - t.first < 0.5 for t in timings)
    assert timed_answer(ask, [0], 3).generated_tokens == 3


def test_random_prompts_share_nothing() -> None:
    prompts = random_prompts(range(1000), 3, 50, 1) + random_prompts(range(1000), 1, 50, 2)
    assert all(len(prompt) == 50 for prompt in prompts)
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 4
    assert random_prompts(range(1000), 3, 50, 1) == prompts[:3]


def test_answers_are_as_long_as_asked_for(nano_q8: Path) -> None:
    with load(nano_q8, context=256, parallel=3, seed=1) as model:
        ids = text_token_ids(local(model))
        assert len(ids) > 1000 and all(local(model).engine.piece(id) for id in ids)
        prompts = [encode(model, "Skriv om Norge.")] * 3
        assert timed_answer(generator_of(local(model)), prompts[0], 150).generated_tokens < 150
        disable_end_tokens(local(model))
        timings = timed_concurrently(generator_of(local(model)), prompts, 150)
        assert [t.generated_tokens for t in timings] == [150] * 3
        assert all(t.started < t.first < t.last for t in timings)


def test_a_model_is_measured(nano_q8: Path) -> None:
    told: list[tuple[str, float]] = []
    began = time.perf_counter()
    alone, three = bench_run(
        nano_q8, prompt_tokens=200, tokens=20, parallel=(1, 3), repeats=2, threads=1,
        on_progress=lambda what, done: told.append((what, done)),
    )  # fmt: skip
    seconds = time.perf_counter() - began
    assert told == [("1 at once", 0.5), ("1 at once", 1.0), ("3 at once", 0.5), ("3 at once", 1.0)]
    assert (alone.parallel, three.parallel) == (1, 3)
    for speed in (alone, three):
        assert 20 / seconds < speed.decode < 100_000 and 200 / seconds < speed.prefill < 1_000_000
        assert 0 < speed.time_to_first_token_cached < speed.time_to_first_token < seconds
        assert 0 < speed.loading < seconds
        assert nano_q8.stat().st_size < speed.peak_memory < 500_000_000
    assert 0.5 < alone.prefill * alone.time_to_first_token / 200 < 2


def test_the_table_and_the_json(nano_q8: Path) -> None:
    short = ("bench", "run", nano_q8, "--prompt-tokens", "40", "--tokens", "4", "--repeats", "1", "--device", "cpu")
    shown = run(*short, "--parallel", "1,2")
    assert shown.returncode == 0
    assert re.fullmatch(r"(\d at once: all layers on CPU, context (2 x )?5\d: .*; .*\n){2}", shown.stderr), shown.stderr
    head, *lines = shown.stdout.splitlines()
    assert head.split()[:5] == ["At", "once", "Prefill", "Decode", "First"]
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert all(line.count(" t/s") == 2 and line.count(" MB") == 1 for line in lines)
    (found,) = json.loads(run(*short, "--parallel", "2", "--json").stdout)
    assert set(found) == set(ModelSpeed.__slots__) and found["parallel"] == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"context": 100}, "a context of 100 tokens; 530 are needed"),
        ({"prompt_tokens": 5000}, "a context of 5018 tokens; this model can have 1 to 2048"),
        ({"threads": 0}, "threads: 0"),
    ],
)
def test_what_cannot_be_measured(nano_q8: Path, options: dict[str, int], error: str) -> None:
    with pytest.raises(InvalidInput, match=error):
        list(bench_run(nano_q8, parallel=(1,), **options))  # type: ignore[arg-type]


def test_errors_on_the_command_line(nano_q8: Path, tmp_path: Path) -> None:
    assert run("bench", "run", tmp_path / "none.gguf").stderr.startswith(f"Error: {tmp_path / 'none.gguf'}: ")
    assert run("bench", "run", nano_q8, "--parallel", "1,x").returncode == 2


def test_a_crash_of_the_measuring_process_is_reported(nano_q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = [sys.executable, "-c", "import faulthandler; faulthandler._sigsegv()"]
    monkeypatch.setattr(model_speed, "child_command", lambda module: dies)
    with pytest.raises(EngineDied, match=r"the measuring process died \((SIGSEGV|SIGBUS|access violation)\)"):
        list(bench_run(nano_q8, parallel=(1,)))
    monkeypatch.setattr(model_speed, "child_command", lambda module: [sys.executable, "-c", "1"])
    with pytest.raises(BorealisError, match="the measuring process ended before it had measured"):
        list(bench_run(nano_q8, parallel=(1,)))


def test_peak_memory_is_this_process() -> None:
    before = peak_memory()
    assert 10_000_000 < before < 100_000_000_000
    block = bytearray(before + 50_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory() > before + 50_000_000
