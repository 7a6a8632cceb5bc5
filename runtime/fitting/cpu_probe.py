"""Probes in a child process whether this llama.cpp crashes on this CPU, and caches the answer.

A llama.cpp that GCC 12 compiled for a CPU with AMX dies with SIGSEGV in the first decode of any quantized model. The
faulty kernels work on weights in "extra" buffers, which a model can be loaded without, at the price of the repacked
kernels' speed. So a child decodes batches with a tiny model that has a tensor of each usual type. If it dies, another
child tries without the extra buffers.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as WriterType
from gguf import GGUFWriter

from ...checkpoint.types import GGMLQuantizationType, row_nbytes
from ...errors import BorealisError
from ...machine_cache import read_note, write_note
from ...quantize.encoders.libraries import library_folder
from ..process.child_process import child_command, child_environment, crash_name, die_quietly, end_with_parent

WIDTH = 256
ARCHITECTURE = "gemma3"
CACHE_FOLDER = "probe"
PROBE_VERSION = 1
TYPES = {
    "token_embd.weight": GGMLQuantizationType.Q8_0,
    "blk.0.attn_q.weight": GGMLQuantizationType.Q4_K,
    "blk.0.attn_k.weight": GGMLQuantizationType.Q4_0,
    "blk.0.attn_v.weight": GGMLQuantizationType.Q5_K,
    "blk.0.attn_output.weight": GGMLQuantizationType.IQ4_XS,
    "blk.0.ffn_gate.weight": GGMLQuantizationType.Q6_K,
    "blk.0.ffn_up.weight": GGMLQuantizationType.Q8_0,
    "blk.0.ffn_down.weight": GGMLQuantizationType.IQ4_NL,
}
NORMS = ("output_norm", "blk.0.attn_norm", "blk.0.post_attention_norm", "blk.0.ffn_norm", "blk.0.post_ffw_norm")


def probe_command(extra_buffers: bool) -> list[str]:
    """The child's command line; it exits with 0 when llama.cpp survived."""
    return child_command(__name__, "extra" if extra_buffers else "plain")


def extra_buffers_work(
    command: Callable[[bool], Sequence[str]] = probe_command, timeout: float = 60.0, identity: Any = None
) -> bool:
    """Whether models can be loaded with llama.cpp's extra buffers here; False: load them without.

    Raises BorealisError when llama.cpp dies, or cannot be loaded, either way.
    """
    identity = machine_identity() if identity is None else identity
    note = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    cached = _cached_answer(note, identity)
    if cached is not None:
        return cached
    problem, crashed = _run_probe(command(True), timeout)
    if problem is None:
        _cache_answer(note, identity, True)
        return True
    second, _ = _run_probe(command(False), timeout)
    if second is not None:
        raise BorealisError(
            f"llama.cpp does not work on this machine: its probe {problem}, and without extra buffers it {second}; "
            "reinstall llama-cpp-python from source for this CPU (pip install --force-reinstall --no-binary "
            "llama-cpp-python llama-cpp-python)"
        )
    if crashed:
        _cache_answer(note, identity, False)
    return False


def machine_identity() -> list[Any]:
    """What the answer depends on: the probe, llama_cpp's version and libraries (size, mtime in ns), and the CPU."""
    stats = [(path.name, path.stat()) for path in sorted(library_folder().glob("*")) if path.is_file()]
    libraries = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return [PROBE_VERSION, importlib.metadata.version("llama_cpp_python"), libraries, *_cpu()]


def _cpu() -> list[str]:
    """The CPU's model and features."""
    names = [platform.machine(), platform.processor(), os.environ.get("PROCESSOR_IDENTIFIER", "")]
    if sys.platform == "darwin":
        brand = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return [*names, subprocess.run(brand, capture_output=True, text=True, check=False).stdout.strip()]
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return names
    first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    fields = ("model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
    return [*names, *(line for line in first.splitlines() if line.startswith(fields))]


def _run_probe(command: Sequence[str], timeout: float) -> tuple[str | None, bool]:
    """What went wrong in the child (None: nothing), and whether it was a crash."""
    stdin, held_open = os.pipe()  # ends with this process, and so does the child
    try:
        done = subprocess.run(
            command, stdin=stdin, capture_output=True, timeout=timeout, check=False, env=child_environment()
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {timeout:g} s", False
    except OSError as error:
        return f"could not be started ({error})", False
    finally:
        os.close(stdin)
        os.close(held_open)
    crash = crash_name(done.returncode)
    if crash is not None:
        return f"died ({crash})", crash != "SIGKILL"  # SIGKILL comes from outside, for example when memory is short
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        return f"failed ({' '.join(last) or f'exit {done.returncode}'})", False
    return None, False


def _cached_answer(name: str, identity: Any) -> bool | None:
    note = read_note(CACHE_FOLDER, name)
    same = note.get("identity") == json.loads(json.dumps(identity))
    return note["extra_buffers"] if same and isinstance(note.get("extra_buffers"), bool) else None


def _cache_answer(name: str, identity: Any, answer: bool) -> None:
    write_note(CACHE_FOLDER, name, {"identity": identity, "extra_buffers": answer})


def write_probe_model(path: Path) -> None:
    """One block of Gemma 3 with 256 columns, no vocabulary, and weights that are all zero (100 kB x 6)."""
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_block_count(1)
    writer.add_context_length(WIDTH)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(WIDTH)
    writer.add_value_length(WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(WIDTH)
    writer.add_vocab_size(WIDTH)
    writer.add_tokenizer_model("no_vocab")
    for name, type in TYPES.items():
        writer.add_tensor(name, np.zeros((WIDTH, row_nbytes(type, WIDTH)), np.uint8), raw_dtype=WriterType(type))
    for name in (*NORMS, "blk.0.attn_q_norm", "blk.0.attn_k_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """The child: decodes batches that use the matrix and the vector kernels, of even and odd sizes."""
    die_quietly()
    end_with_parent()
    from ..llama.engine import Engine

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.gguf"
        write_probe_model(path)
        engine = Engine(path, context=WIDTH, threads=2, extra_buffers=sys.argv[1] == "extra", gpu_layers=0)
        for count in (64, 33, 1):
            engine.prefill(0, 0, [1] * count)
            engine.truncate(0, 0)
        engine.close()
