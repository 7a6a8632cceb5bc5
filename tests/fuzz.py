"""Fuzzes everything that reads a stranger's files: mutated inputs must be read, or refused in one line.

    python -m tests.fuzz --seconds 3600             # all readers, an hour together; failing inputs go to fuzz-failures/
    python -m tests.fuzz --seconds 60 gguf template --seed 7

Each reader starts from valid files, which are mutated: bits, numbers at their edges, pieces removed, doubled, moved,
taken from another file; in JSON also values and keys. An input fails when the reader raises anything but a
BorealisError of one line, takes more than two seconds of processor time, or more memory than the limit of the process.
"""

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from borealis_gguf import BorealisError, execute, plan_convert, plan_quantize
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.imatrix import read_imatrix
from borealis_gguf.checkpoint.safetensors import read_header
from borealis_gguf.convert.tokenizers.sentencepiece_model import read_sentencepiece
from borealis_gguf.modelfiles.read import read_modelfile
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate
from borealis_gguf.runtime.prompting.template_renderer import TemplateRenderer

from .helpers.checkpoints import MINIATURES, text_shapes
from .helpers.imatrices import write_imatrix
from .helpers.lora_adapters import ALL_LINEAR, Lora
from .helpers.paths import DATA

MAX_SECONDS = 2.0
MAX_MEMORY = 2 << 30
"""Bytes of address space beyond what the process has at its start, where the system can limit that."""

EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    1e308,
    0.5,
    "",
    "a",
    "\0",
    "ø" * 300,
    [],
    [[]],
    {},
    {"": 0},
)
MODELFILE = b'FROM ./a.gguf\nTEMPLATE """{{ .Prompt }}"""\nSYSTEM "Svar"\nPARAMETER stop "<end>"\nMESSAGE user Hei\n'
WORDS = (b"{{", b"}}", b"{%", b"%}", b"[[[[", b"\xff\xfe", b"\0", b"../", b'"""', b"NaN", b"\\u0000", "▁".encode())


@dataclass(frozen=True)
class Reader:
    """`seeds` are valid files by name; `read` is called with the name of the mutated one and its bytes."""

    seeds: Mapping[str, bytes]
    read: Callable[[str, bytes], object]


def mutated(data: bytes, others: list[bytes], random: random.Random) -> bytes:
    """`data` after one to four mutations."""
    if data[:1] in (b"{", b"[") and random.random() < 0.6:
        try:
            value = json.loads(data)
            for _ in range(random.randint(1, 3)):
                value = mutated_json(value, random)
            return json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            pass
    out = bytearray(data)
    for _ in range(random.randint(1, 4)):
        mutate_bytes(out, others, random)
    return bytes(out)


def mutate_bytes(out: bytearray, others: list[bytes], random: random.Random) -> None:
    # headers are what readers look at, and they come first
    end = min(len(out), 512) if random.random() < 0.5 else len(out)
    at = random.randrange(end) if end else 0
    length = random.choice((1, 4, 8, 64, 1024))
    kind = random.randrange(8)
    if kind == 0 and out:
        out[at] ^= 1 << random.randrange(8)
    elif kind == 1:
        width = random.choice((1, 2, 4, 8))
        out[at : at + width] = (random.choice(EDGES) % (1 << 8 * width)).to_bytes(width, "little")
    elif kind == 2:
        del out[at : at + length]
    elif kind == 3:
        out[at:at] = out[at : at + length] * random.choice((1, 2, 50))
    elif kind == 4:
        del out[at:]
    elif kind == 5:
        out[at:at] = random.choice(WORDS)
    elif kind == 6:
        other = random.choice(others)
        start = random.randrange(max(1, len(other)))
        out[at : at + length] = other[start : start + length]
    else:
        out[at : at + length] = random.randbytes(min(length, 64))


def mutated_json(value: Any, random: random.Random, depth: int = 0) -> Any:
    """`value` with one part of it replaced, removed, renamed or doubled."""
    if isinstance(value, dict) and value and (depth == 0 or random.random() < 0.8):
        keys = list(value)
        key = random.choice(keys[:50] if random.random() < 0.5 else keys)
        choice = random.random()
        if choice < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if choice < 0.2:
            return {(f"{k}x" if k == key else k): v for k, v in value.items()}
        return {**value, key: mutated_json(value[key], random, depth + 1)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        choice = random.random()
        if choice < 0.1:
            return value[:at] + value[at + 1 :]
        if choice < 0.2:
            return value[:at] + value[at : at + 1] * 2 + value[at + 1 :]
        return [*value[:at], mutated_json(value[at], random, depth + 1), *value[at + 1 :]]
    return random.choice(VALUES)


def readers(folder: Path, stack: ExitStack) -> dict[str, Reader]:
    """Every reader, with the seeds it starts from; their files lie in `folder`."""
    miniature = next(m for m in MINIATURES if m.name == "seeing-f16")
    checkpoint = miniature.write(folder)
    gguf = execute([plan_convert(checkpoint, folder / "seed.gguf")], check=False)[0].path
    adapter = Lora("adapter", {}, dict.fromkeys(ALL_LINEAR, 4), shapes=text_shapes(miniature.text)).write(folder)
    imatrix = write_imatrix(folder / "imatrix.gguf", checkpoint)
    renderer = stack.enter_context(TemplateRenderer(ChatTemplate("")))
    templates = {path.name: path.read_bytes() for path in (DATA / "hostile_templates").glob("*.jinja")}
    templates["own"] = (checkpoint / "chat_template.jinja").read_bytes()

    def at(path: Path, read: Callable[[Path], object]) -> Callable[[str, bytes], object]:
        def write_and_read(_: str, data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return write_and_read

    def beside(original: Path, plan: Callable[[Path], object]) -> Callable[[str, bytes], object]:
        """Reads a copy of the folder `original` in which one file is replaced, and whole again afterwards."""
        copy = Path(shutil.copytree(original, folder / f"mutated {original.name}"))

        def replace_and_plan(name: str, data: bytes) -> object:
            (copy / name).write_bytes(data)
            try:
                return plan(copy)
            finally:
                shutil.copyfile(original / name, copy / name)

        return replace_and_plan

    def render(_: str, data: bytes) -> object:
        renderer.template = ChatTemplate(data.decode("utf-8", "replace"), "<bos>", "<eos>")
        return renderer.render_segments([{"role": "user", "content": "Hei {{ 1 }}"}])

    def files(of: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(of.iterdir())}

    out = folder / "out.gguf"
    convert, quantize = partial(plan_convert, output=out), partial(plan_quantize, presets=["Q8_0"], output=out)
    tokenizer, safetensors = checkpoint / "tokenizer.model", checkpoint / "model.safetensors"
    return {
        "gguf": Reader({"seed.gguf": head(gguf)}, at(folder / "m.gguf", read_gguf)),
        "quantize": Reader({"seed.gguf": gguf.read_bytes()}, at(folder / "q.gguf", quantize)),
        "safetensors": Reader({safetensors.name: head(safetensors)}, at(folder / "m.safetensors", read_header)),
        "checkpoint": Reader(files(checkpoint), beside(checkpoint, convert)),
        "adapter": Reader(files(adapter), beside(adapter, lambda path: convert(checkpoint, loras=[(path, 1)]))),
        "imatrix": Reader({imatrix.name: imatrix.read_bytes()}, at(folder / "i.gguf", read_imatrix)),
        "sentencepiece": Reader({tokenizer.name: tokenizer.read_bytes()}, at(folder / "t.model", read_sentencepiece)),
        "template": Reader(templates, render),
        "modelfile": Reader({"Modelfile": MODELFILE}, lambda _, data: read_modelfile(data.decode("utf-8", "replace"))),
    }


def head(path: Path, nbytes: int = 1 << 18) -> bytes:
    """The beginning of a file, where its header is, and zeros in place of most of its weights."""
    data = path.read_bytes()
    return data if len(data) <= nbytes else data[:nbytes] + bytes(len(data) - nbytes)


def fuzz(reader: Reader, seconds: float, random: random.Random) -> Iterator[tuple[str, bytes, str]]:
    """Yields name, input and fault of every failing input; at its end the number of inputs tried, as name."""
    others, names = list(reader.seeds.values()), list(reader.seeds)
    tried, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        name = random.choice(names)
        data = mutated(reader.seeds[name], others, random)
        tried += 1
        if found := fault(reader, name, data):
            yield name, data, found
    yield str(tried), b"", ""


def fault(reader: Reader, name: str, data: bytes) -> str:
    """What is wrong with how this input is read; empty when nothing is."""
    began = time.process_time()
    try:
        reader.read(name, data)
    except BorealisError as error:
        if "\n" in str(error) or not str(error):
            return f"an error that is not one line: {str(error)[:200]!r}"
        if not str(error).isprintable():
            return f"an error that is not printable: {str(error)[:200]!r}"
        if len(str(error)) > 3000:
            return f"an error of {len(str(error))} characters"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"a bare {type(error).__name__}: {str(error)[:200]}"
    took = time.process_time() - began
    return f"{took:.1f} s" if took > MAX_SECONDS else ""


@contextmanager
def limited_memory() -> Iterator[None]:
    """Limits the address space, so that an input that asks for too much is a MemoryError."""
    if sys.platform != "linux":
        yield
        return
    import resource

    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help="default: all of them")
    parser.add_argument("--seconds", type=float, default=60, help="for all readers together")
    parser.add_argument("--seed", type=int, default=None, help="the same seed makes the same inputs")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for failing inputs")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    failures = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        every = readers(folder, stack)
        chosen = {name: every[name] for name in args.readers or every}
        stack.enter_context(limited_memory())
        for what, reader in chosen.items():
            for name, data, found in fuzz(reader, args.seconds / len(chosen), random.Random(f"{seed} {what}")):
                if not found:
                    print(f"{what}: {name} inputs", flush=True)
                    continue
                failures += 1
                if failures <= 100:
                    path = args.failures / f"{what}-{failures}-{name}"
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(data)
                    print(f"{path}: {found}", flush=True)
    print(f"seed {seed}: {failures} failures")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
