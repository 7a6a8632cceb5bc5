"""The executor: the same bytes whatever the workers and chunks, and nothing half under a final name."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from borealis_gguf import execute as run_plans
from borealis_gguf import plan_convert
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.checkpoint.types import Slice
from borealis_gguf.errors import BorealisError, Cancelled, InvalidInput
from borealis_gguf.pipeline import atomic_output, sources, writer
from borealis_gguf.pipeline import execute as executor
from borealis_gguf.pipeline.atomic_output import PartialFile
from borealis_gguf.pipeline.execute import Progress, execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.memory_estimate import memory_needed
from borealis_gguf.pipeline.plan import Codec, GGUFModel, RowMap, Tensor, TensorPlan, TensorSource
from borealis_gguf.pipeline.tasks import CHUNK_WEIGHTS, LATTICE_CHUNK_WEIGHTS, tasks, total_nbytes
from borealis_gguf.quantize.encoders import ggml

from ..helpers.checkpoints import MINIATURES
from ..helpers.tiny import CODEC, raw_model, weights

SHAPES = {"token_embd.weight": (300, 256), "output_norm.weight": (256,), "blk.0.ffn_up.weight": (70, 512)}


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def payload(path: Path, t: TensorPlan) -> np.ndarray:
    return np.fromfile(path, np.uint8, t.nbytes, offset=t.offset)


@pytest.mark.parametrize("source", [T.F32, T.F16, T.BF16])
@pytest.mark.parametrize("target", [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_K])
def test_bytes_are_ggmls(tmp_path: Path, source: T, target: T) -> None:
    model = raw_model(tmp_path / "raw", SHAPES, source, shift=1.0)
    plan = lay_out(tmp_path / "x.gguf", model, [target, T.F32, target])
    execute([plan], CODEC)
    for index, t in enumerate(plan.tensors):
        values = weights(index, *t.tensor.shape).reshape(t.tensor.rows, -1)
        if source == T.BF16:
            values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        elif source == T.F16:
            values = values.astype(np.float16)
        values = values + values.dtype.type(1) if index == 1 else values
        expected = np.empty((t.tensor.rows, t.nbytes // t.tensor.rows), np.uint8)
        ggml.encode(values, t.type, None, expected)
        assert np.array_equal(payload(plan.path, t), expected.reshape(-1)), t.tensor.name


def test_workers_and_chunks_do_not_change_bytes(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", SHAPES, T.BF16)
    sums = set()
    for n, (jobs, chunk) in enumerate([(1, 1), (1, 1 << 18), (2, 700), (5, 4096), (16, 256)]):
        plan = lay_out(tmp_path / f"{n}.gguf", model, [T.Q6_K, T.F32, T.Q4_K])
        execute([plan], CODEC, jobs=jobs, chunk_weights=chunk)
        sums.add(sha(plan.path))
    assert len(sums) == 1


def test_several_files_share_reads_and_encodes(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", SHAPES, T.BF16)
    kinds = {"a": [T.Q6_K, T.F32, T.Q4_K], "b": [T.Q6_K, T.F32, T.Q5_K], "c": [T.BF16, T.F32, T.Q4_K]}
    alone = {}
    for name, types in kinds.items():
        execute([lay_out(tmp_path / f"alone-{name}.gguf", model, types)], CODEC)
        alone[name] = sha(tmp_path / f"alone-{name}.gguf")
    calls: list[tuple[T, int]] = []

    def counting(rows: np.ndarray, type: T, importance: np.ndarray | None, out: np.ndarray) -> bool:
        calls.append((type, rows.size))
        return ggml.encode(rows, type, importance, out)

    plans = [lay_out(tmp_path / f"{name}.gguf", model, types) for name, types in kinds.items()]
    execute(plans, Codec(counting, ggml.decode, ggml.validate), jobs=2, chunk_weights=8192)
    assert {name: sha(tmp_path / f"{name}.gguf") for name in kinds} == alone
    assert sum(n for type, n in calls if type == T.Q6_K) == 300 * 256
    assert sum(n for type, n in calls if type in (T.Q4_K, T.Q5_K)) == 2 * 70 * 512
    assert sum(t.nbytes for t in tasks(plans)) == total_nbytes(plans) == (tmp_path / "raw").stat().st_size


def test_importance_reaches_the_encoder(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"w.weight": (40, 256)}, T.F32)
    importance = np.abs(weights(9, 256)) + 0.1
    plain, weighted = (
        lay_out(tmp_path / f"{n}.gguf", model, [T.Q4_K], importance=[i]) for n, i in enumerate([None, importance])
    )
    execute([plain, weighted], CODEC)
    expected = np.empty((40, 144), np.uint8)
    ggml.encode(weights(0, 40, 256), T.Q4_K, importance, expected)
    assert np.array_equal(payload(weighted.path, weighted.tensors[0]), expected.reshape(-1))
    assert not np.array_equal(payload(plain.path, plain.tensors[0]), expected.reshape(-1))


def test_quantized_sources_are_decoded(tmp_path: Path) -> None:
    rows = np.empty((6, 272), np.uint8)
    ggml.encode(weights(0, 6, 256), T.Q8_0, None, rows)
    (tmp_path / "raw").write_bytes(rows.tobytes())
    like = raw_model(tmp_path / "other", {"w.weight": (6, 256)}, T.F32)
    slice = like.tensors[0].source.slice
    tensor = Tensor("w.weight", TensorSource(type(slice)(tmp_path / "raw", 0, T.Q8_0, (6, 256))), (6, 256))
    plan = lay_out(tmp_path / "x.gguf", GGUFModel(like.kv, (tensor,)), [T.Q4_K])
    execute([plan], CODEC)
    expected = np.empty((6, 144), np.uint8)
    ggml.encode(ggml.decode(rows, T.Q8_0, 256), T.Q4_K, None, expected)
    assert np.array_equal(payload(plan.path, plan.tensors[0]), expected.reshape(-1))


def test_rows_past_the_planned_ones_are_left_out(tmp_path: Path) -> None:
    full = raw_model(tmp_path / "raw", {"w.weight": (10, 64)}, T.F32).tensors[0]
    plan = lay_out(tmp_path / "x.gguf", GGUFModel((), (Tensor("w.weight", full.source, (7, 64)),)), [T.F32])
    execute([plan], CODEC)
    assert np.array_equal(payload(plan.path, plan.tensors[0]).view(np.float32), weights(0, 10, 64)[:7].reshape(-1))


ROTARY = RowMap((4, 2, 16), (0, 2, 1))
QKV = RowMap((4, 3, 16), (1, 0, 2))


@pytest.mark.parametrize("order", [ROTARY, QKV, RowMap((2, 3, 4, 8), (3, 1, 0, 2)), RowMap((8, 16), (1, 0), 64)])
@pytest.mark.parametrize("type", [T.F32, T.BF16])
@pytest.mark.parametrize("columns", [(), (256,)])
def test_rows_are_picked_as_numpy_transposes(tmp_path: Path, order: RowMap, type: T, columns: tuple[int, ...]) -> None:
    rows = int(np.prod(order.shape))
    full = raw_model(tmp_path / "raw", {"other": (7,), "w": (order.first + rows + 3, *columns)}, type).tensors[1]
    tensor = Tensor("w", replace(full.source, shift=0.0, order=order), (rows, *columns))
    values = weights(1, *full.shape)[order.first : order.first + rows]
    if type == T.BF16:
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    picked = values.reshape(*order.shape, -1).transpose(*order.axes, len(order.axes)).reshape(rows, -1)
    for n, (jobs, chunk) in enumerate([(1, 1), (1, 1 << 18), (2, 700), (5, 4096), (3, 256)]):
        plan = lay_out(tmp_path / f"{n}.gguf", GGUFModel((), (tensor,)), [T.F32])
        execute([plan], CODEC, jobs=jobs, chunk_weights=chunk)
        assert np.array_equal(payload(plan.path, plan.tensors[0]).view(np.float32), picked.reshape(-1)), (jobs, chunk)
    same = lay_out(tmp_path / "same.gguf", GGUFModel((), (tensor,)), [type])
    execute([same], CODEC)
    assert payload(same.path, same.tensors[0]).size == rows * int(np.prod(columns)) * (2 if type == T.BF16 else 4)
    expected = picked.view(np.uint32) >> 16 if type == T.BF16 else picked
    got = payload(same.path, same.tensors[0]).view(np.uint16 if type == T.BF16 else np.float32)
    assert np.array_equal(got, expected.reshape(-1))


def test_picking_rows_needs_memory_for_a_few_heads_only(tmp_path: Path) -> None:
    """A head of 128 rows: however many there are, a worker holds its chunk and the rows these come from."""
    needed = []
    for heads in (4, 4000):
        tensors = []
        for name, order in (
            ("q", RowMap((heads, 2, 64), (0, 2, 1))),
            ("qkv", RowMap((heads, 3, 128), (1, 0, 2))),
        ):
            shape = (int(np.prod(order.shape)), 4096)
            slice = Slice(tmp_path / "raw", 0, T.BF16, shape)
            tensors.append(Tensor(name, TensorSource(slice, order=order), shape))
        needed.append(memory_needed([lay_out(tmp_path / "x.gguf", GGUFModel((), tuple(tensors)), [T.Q8_0] * 2)], 1))
    assert needed[0] == needed[1] < 16 << 20


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", SHAPES, T.BF16)
    seen: list[Progress] = []
    results = execute([lay_out(tmp_path / "x.gguf", model, [T.Q8_0, T.F32, T.Q8_0])], CODEC, on_progress=seen.append)
    assert seen[-1].done == seen[-1].total == (tmp_path / "raw").stat().st_size
    assert results[0].size == (tmp_path / "x.gguf").stat().st_size
    assert results[0].bits_per_weight == pytest.approx(8.5, rel=0.02)


def only_inputs(folder: Path) -> bool:
    return sorted(p.name for p in folder.iterdir()) == ["raw"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("target", [T.F32, T.F16, T.Q4_K])
def test_nonfinite_weights_are_refused(tmp_path: Path, bad: float, target: T) -> None:
    model = raw_model(tmp_path / "raw", {"blk.0.w.weight": (9, 256)}, T.F32)
    data = np.fromfile(tmp_path / "raw", np.float32)
    data[3 * 256 + 7] = bad
    data.tofile(tmp_path / "raw")
    plan = lay_out(tmp_path / "x.gguf", model, [target])
    with pytest.raises(BorealisError, match=r"blk\.0\.w\.weight: a weight in rows 0 to 8 is NaN or Inf"):
        execute([plan], CODEC)
    assert only_inputs(tmp_path)
    execute([plan], CODEC, allow_nonfinite=True)
    assert plan.path.stat().st_size == plan.size


def test_a_weight_too_large_for_its_type_is_refused(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"w.weight": (2, 256)}, T.F32)
    data = np.fromfile(tmp_path / "raw", np.float32)
    data[5] = 1e6
    data.tofile(tmp_path / "raw")
    with pytest.raises(BorealisError, match="too large for F16"):
        execute([lay_out(tmp_path / "x.gguf", model, [T.F16])], CODEC)
    assert only_inputs(tmp_path)


def test_truncated_source_names_tensor_and_offset(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"a.weight": (4, 256), "b.weight": (4, 256)}, T.F32)
    with (tmp_path / "raw").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(BorealisError, match=r"raw: ends inside b\.weight, at offset 5000"):
        execute([lay_out(tmp_path / "x.gguf", model, [T.Q8_0] * 2)], CODEC)
    assert only_inputs(tmp_path)


def test_a_source_that_changes_is_noticed(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", SHAPES, T.F32)

    def touching(rows: np.ndarray, type: T, importance: np.ndarray | None, out: np.ndarray) -> bool:
        os.utime(tmp_path / "raw", ns=(1, 1))
        return ggml.encode(rows, type, importance, out)

    with pytest.raises(BorealisError, match="raw: changed while it was read"):
        execute([lay_out(tmp_path / "x.gguf", model, [T.Q8_0] * 3)], Codec(touching, ggml.decode, ggml.validate))
    assert only_inputs(tmp_path)


def test_a_source_replaced_between_plan_and_execute_is_noticed(tmp_path: Path) -> None:
    """Even by one of the same size and time of modification."""
    checkpoint = MINIATURES[0].write(tmp_path)
    plan = plan_convert(checkpoint, tmp_path / "x.gguf")
    weights = checkpoint / "model.safetensors"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(before.st_size - 4096)
        file.write(bytes(64))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BorealisError, match=r"model\.safetensors: changed since it was planned"):
        run_plans([plan])
    assert not list(tmp_path.glob("*.gguf"))


def test_a_vanished_source_is_one_line(tmp_path: Path) -> None:
    checkpoint = MINIATURES[0].write(tmp_path)
    plan = plan_convert(checkpoint, tmp_path / "x.gguf")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(BorealisError, match=r"model\.safetensors: cannot be read: no such file"):
        run_plans([plan])


def test_tasks_of_lattice_types_are_small(tmp_path: Path) -> None:
    """ggml's own encoder takes up to two seconds for a million such weights, and a run must stop within one."""
    model = raw_model(tmp_path / "raw", {"w.weight": (4096, 256)}, T.F32)
    for type, chunk in ((T.Q4_K, CHUNK_WEIGHTS), (T.IQ2_XS, LATTICE_CHUNK_WEIGHTS)):
        plan = lay_out(tmp_path / "x.gguf", model, [type])
        assert {task.rows * 256 for task in tasks([plan])} == {chunk}


def test_stop_from_another_thread(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"w.weight": (2000, 256)}, T.F32)
    stop = threading.Event()

    def stopping(rows: np.ndarray, type: T, importance: np.ndarray | None, out: np.ndarray) -> bool:
        stop.set()
        return ggml.encode(rows, type, importance, out)

    with pytest.raises(Cancelled):
        codec = Codec(stopping, ggml.decode, ggml.validate)
        execute([lay_out(tmp_path / "x.gguf", model, [T.Q4_K])], codec, chunk_weights=256, stop=stop)
    assert only_inputs(tmp_path)


def test_outputs_are_checked_before_work(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"w.weight": (2, 256)}, T.F32)

    def refused(path: Path, match: str, n: int = 1) -> None:
        with pytest.raises(InvalidInput, match=match):
            execute([lay_out(path, model, [T.Q8_0])] * n, CODEC)

    refused(tmp_path / "raw", "overwrite its own input")
    refused(tmp_path / "none" / "none" / "x.gguf", "no such folder")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "x.gguf", "two outputs", n=2)
    assert only_inputs(tmp_path)


def test_a_folder_for_the_output_is_made_and_kept_only_with_a_file(tmp_path: Path) -> None:
    checkpoint = MINIATURES[0].write(tmp_path)
    plan = plan_convert(checkpoint, tmp_path / "gguf")
    assert plan.path.parent == tmp_path / "gguf"
    with pytest.raises(BorealisError, match="fault"):
        execute([plan], replace(CODEC, valid=fault))
    assert not plan.path.parent.exists()
    run_plans([plan], check=False)
    assert plan.path.is_file()


def fault(*_: object) -> bool:
    raise BorealisError("a fault")


def test_a_file_that_is_no_gguf_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    plan = plan_convert(MINIATURES[0].write(tmp_path), tmp_path / "notes.txt")
    with pytest.raises(InvalidInput, match=r"notes\.txt: is a file, not a folder for the output; end a file's name"):
        run_plans([plan])
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_too_little_space_is_refused(tmp_path: Path) -> None:
    huge = raw_model(tmp_path / "raw", {"w.weight": (1, 32)}, T.F32).tensors[0]
    tensor = Tensor("w.weight", huge.source, (1 << 45, 32))
    with pytest.raises(InvalidInput, match=r"needed, .* free; make room"):
        execute([lay_out(tmp_path / "x.gguf", GGUFModel((), (tensor,)), [T.F32])], CODEC)
    assert only_inputs(tmp_path)


def test_a_second_run_on_the_same_output_is_refused(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"w.weight": (8, 256)}, T.F32)
    plan = lay_out(tmp_path / "x.gguf", model, [T.Q8_0])
    refusals: list[str] = []

    def nested(rows: np.ndarray, type: T, importance: np.ndarray | None, out: np.ndarray) -> bool:
        with pytest.raises(InvalidInput) as caught:
            execute([plan], CODEC)
        refusals.append(str(caught.value))
        return ggml.encode(rows, type, importance, out)

    execute([plan], Codec(nested, ggml.decode, ggml.validate), jobs=1)
    assert "another run is writing this file" in refusals[0]
    assert plan.path.stat().st_size == plan.size


SLOW = """
    import sys, time
    from pathlib import Path
    from borealis_gguf.pipeline.execute import execute
    from borealis_gguf.pipeline.layout import lay_out
    from borealis_gguf.pipeline.plan import Codec, GGUFModel, Tensor, TensorSource
    from borealis_gguf.checkpoint.types import Slice
    from borealis_gguf.quantize.encoders import ggml
    from borealis_gguf.checkpoint.types import GGMLQuantizationType as T

    def slow(rows, type, importance, out):
        print("working", flush=True)
        time.sleep(float(sys.argv[2]))
        return ggml.encode(rows, type, importance, out)

    folder = Path(sys.argv[1])
    tensor = Tensor("w.weight", TensorSource(Slice(folder / "raw", 0, T.F32, (64, 256))), (64, 256))
    plan = lay_out(folder / "x.gguf", GGUFModel((), (tensor,)), [T.Q8_0])
    execute([plan], Codec(slow, ggml.decode, ggml.validate), jobs=2, chunk_weights=256)
"""


def start_slow(folder: Path, seconds: float) -> subprocess.Popen[str]:
    raw_model(folder / "raw", {"w.weight": (64, 256)}, T.F32)
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    assert process.stdout.readline().startswith("working")
    return process


def test_a_killed_run_leaves_no_final_name_and_the_next_one_succeeds(tmp_path: Path) -> None:
    process = start_slow(tmp_path, 0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "x.gguf").exists()
    assert len(list(tmp_path.glob(".x.gguf.*.partial"))) == 1
    again = start_slow(tmp_path, 0)
    assert again.wait(30) == 0
    model = raw_model(tmp_path / "raw", {"w.weight": (64, 256)}, T.F32)
    clean = lay_out(tmp_path / "clean.gguf", GGUFModel((), model.tensors), [T.Q8_0])
    execute([clean], CODEC)
    assert sha(tmp_path / "x.gguf") == sha(clean.path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.gguf", "raw", "x.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_an_interrupt_stops_within_a_second(tmp_path: Path) -> None:
    process = start_slow(tmp_path, 0.1)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(10) != 0
    assert time.monotonic() - began < 1
    assert only_inputs(tmp_path)


def test_disk_space_is_reserved_before_data_is_written(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"token_embd.weight": (1024, 1024)}, T.F32)
    file = PartialFile(lay_out(tmp_path / "x.gguf", model, [T.F32]))
    file.begin()
    stat = file.path.stat()
    assert stat.st_size == file.plan.size >= 1 << 22
    if sys.platform == "linux":
        assert stat.st_blocks * 512 >= file.plan.size
    file.discard()
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("verified", [False, True])
def test_an_error_of_the_final_fsync_keeps_a_file_from_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verified: bool
) -> None:
    """It is waited for while the verifier looks, which finds nothing wrong: it sees what is in memory."""
    asked: list[str] = []

    class Verifier:
        def begin(self, files: object) -> None:
            asked.append("begin")

        def finish(self) -> None:
            asked.append("finish")

        def abort(self) -> None:
            asked.append("abort")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    plan = lay_out(tmp_path / "x.gguf", raw_model(tmp_path / "raw", SHAPES, T.BF16), [T.BF16] * 3)
    monkeypatch.setattr(atomic_output, "_fsync", fail)
    with pytest.raises(BorealisError, match=os.strerror(errno.EIO)):
        execute([plan], CODEC, verifier=Verifier() if verified else None)
    assert asked == ["begin", "finish"] * verified
    assert only_inputs(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")
def test_a_disk_that_fills_up_is_one_clean_error(tmp_path: Path) -> None:
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\n"
    raw_model(tmp_path / "raw", {"w.weight": (64, 256)}, T.F32)
    command = [sys.executable, "-c", limited + textwrap.dedent(SLOW), str(tmp_path), "0"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "BorealisError" in process.stderr.splitlines()[-1]
    assert "File too large" in process.stderr.splitlines()[-1]
    assert only_inputs(tmp_path)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="there is no way to tell this system")
def test_local_files_are_prefetched_some_tasks_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = raw_model(tmp_path / "raw", {"a.weight": (40, 256), "b.weight": (10, 512)}, T.BF16)
    plan = lay_out(tmp_path / "out.gguf", model, [T.Q8_0, T.Q4_K])
    advised: list[tuple[int, int]] = []

    def advise(fd: int, start: int, nbytes: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED and os.fstat(fd).st_size == (tmp_path / "raw").stat().st_size
        advised.append((start - sources.PREFETCH_BYTES, nbytes))
        raise OSError(errno.ESPIPE, "not every file system can")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    execute([plan], CODEC, jobs=1, chunk_weights=1024)
    assert advised == [task.source_range() for task in tasks([plan], 1024)]


@pytest.mark.parametrize("system", ["as it is", "that can only wait"])
def test_a_flush_in_mid_run_replaces_no_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    synced: list[int] = []
    wait = atomic_output._fsync
    monkeypatch.setattr(atomic_output, "_fsync", lambda fd: (synced.append(fd), wait(fd)))
    if system == "that can only wait":
        monkeypatch.setattr(atomic_output, "_linux", lambda *_: None)
    plan = lay_out(tmp_path / "x.gguf", raw_model(tmp_path / "raw", SHAPES, T.BF16), [T.BF16] * 3)
    file = PartialFile(plan)
    file.begin()
    file.flush()
    starts_alone = sys.platform == "linux" and system == "as it is"
    assert len(synced) == (0 if starts_alone else 1)
    file.sync()
    assert len(synced) == (1 if starts_alone else 2)
    file.publish()
    assert plan.path.stat().st_size == plan.size


def test_a_failure_leaves_the_callers_stop_event_alone(tmp_path: Path) -> None:
    def fail(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    stop = threading.Event()
    plan = lay_out(tmp_path / "x.gguf", raw_model(tmp_path / "raw", SHAPES, T.F32), [T.Q8_0] * 3)
    with pytest.raises(BorealisError, match="Input/output error"):
        execute([plan], replace(CODEC, encode=fail), stop=stop)
    assert not stop.is_set()


def test_an_error_of_the_last_flush_keeps_a_file_from_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flush has begun when the workers end, and fails afterwards."""
    begun, ended = threading.Event(), threading.Event()

    def fail(fd: int) -> None:
        begun.set()
        assert ended.wait(30)
        time.sleep(0.2)
        raise OSError(5, "Input/output error")

    def work(self: executor._Run, *args: Any) -> None:
        real(self, *args)
        assert begun.wait(30)
        ended.set()

    real = executor._Run.work
    monkeypatch.setattr(executor._Run, "work", work)
    monkeypatch.setattr(atomic_output, "_start_writing", fail)
    monkeypatch.setattr(writer, "FLUSH_BYTES", 1)
    plan = lay_out(tmp_path / "x.gguf", raw_model(tmp_path / "raw", SHAPES, T.F32), [T.Q8_0] * 3)
    with pytest.raises(BorealisError, match=r"x\.gguf: Input/output error"):
        execute([plan], CODEC)
    assert only_inputs(tmp_path)
