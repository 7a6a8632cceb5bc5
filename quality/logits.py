"""Next-token probabilities of a GGUF in llama.cpp beside those of its checkpoint in transformers."""

import importlib
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.gguf import GGUFFile
from ..checkpoint.types import GGMLQuantizationType
from ..errors import BorealisError, InvalidInput
from ..runtime.probe import extra_buffers_work
from . import bounds
from .asked import Asked
from .report import Finding, Section
from .texts import LINES

NEEDED = ("transformers", "torch")
LONG_TOKENS = 1400
"""Length of the longest prompt: past the sliding window of every Borealis model (512 or 1024)."""

POSITIONS = 48
"""Positions of a prompt that are compared: a row of probabilities has 262144 of them."""

ALWAYS = 0.001
"""The mean divergence (nats) that is never held against a file: llama.cpp rounds activations, and deeper models add up
more of that. The trained model of 7 million weights in examples/ has 2e-7 in F16, and 0.004 with a wrong rope base."""

PER_ERROR = 40.0
"""Mean divergence over the squared relative error of the weights. The same model has 3 (Q8_0), 0.7 (Q4_K_M) and 0.4
(Q2_K); the rest is room for models that were not measured. Tighter proof is in the section on weights."""


def require() -> None:
    """Raises InvalidInput, saying how to get it, when transformers is not there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInput(f"comparing logits needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def measure(gguf: str, checkpoint: str, extra_buffers: bool, threads: int) -> list[dict[str, Any]]:
    """For each prompt its `tokens`, the mean `divergence` KL(checkpoint ‖ GGUF) in nats, and how often the likeliest
    token is the `same`. Both models are in memory, one after the other; run it in a child.
    """
    from ..runtime.vocabulary import open_vocabulary

    vocabulary = open_vocabulary(Path(gguf))
    begin = [] if vocabulary.bos is None else [vocabulary.bos]
    prompts = [[*begin, *vocabulary.tokenize(text, special=False)] for text in _texts()]
    vocabulary.close()
    prompts = [prompt[:LONG_TOKENS] for prompt in prompts]
    expected = _of_checkpoint(checkpoint, prompts)
    found = _of_gguf(gguf, prompts, extra_buffers, threads)
    return [_compared(prompt, *rows) for prompt, *rows in zip(prompts, expected, found, strict=True)]


def _texts() -> list[str]:
    return [LINES[3], LINES[8], LINES[13], "\n".join(LINES * 2)]


def _positions(count: int) -> list[int]:
    """The positions of a prompt whose next-token probabilities are compared, the last one among them."""
    return sorted({count - 1, *np.linspace(0, count - 1, POSITIONS).astype(int).tolist()})


def _of_checkpoint(folder: str, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    torch: Any = importlib.import_module("torch")
    loader: Any = importlib.import_module("transformers").AutoModelForCausalLM
    model = loader.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True, trust_remote_code=False)
    model.eval()
    with torch.inference_mode():
        return [
            model(torch.tensor([list(prompt)])).logits[0, _positions(len(prompt))].float().numpy() for prompt in prompts
        ]


def _of_gguf(path: str, prompts: Sequence[Sequence[int]], extra_buffers: bool, threads: int) -> list[np.ndarray]:
    from ..runtime.engine import BATCH, Engine

    longest = max(map(len, prompts))
    placing: dict[str, Any] = {"context": longest, "outputs": BATCH, "gpu_layers": 0}
    engine = Engine(Path(path), threads=threads, extra_buffers=extra_buffers, **placing)
    try:
        return [engine.logits(prompt, _positions(len(prompt))) for prompt in prompts]
    finally:
        engine.close()


def _compared(prompt: Sequence[int], expected: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    width = min(expected.shape[1], found.shape[1])  # padding of the vocabulary
    p, q = _log_softmax(expected[:, :width]), _log_softmax(found[:, :width])
    divergence = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    same = float((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    return {"tokens": len(prompt), "divergence": divergence, "same": same}


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def limit(types: Mapping[GGMLQuantizationType, int]) -> float:
    """The mean divergence to expect at most, of a file with so many weights of each type."""
    error = sum(count * bounds.TYPICAL.get(type, 1.0) ** 2 for type, count in types.items())
    return ALWAYS + PER_ERROR * error / max(1, sum(types.values()))


def check_logits(gguf: str, checkpoint: Path, header: GGUFFile, threads: int) -> Section:
    """The section on logits: loads both models, in a child, which takes their memory and their time."""
    asked = Asked(
        {"logits": gguf, "checkpoint": str(checkpoint), "extra_buffers": extra_buffers_work(), "threads": threads},
        "both models computed logits",
    )
    try:
        prompts = asked.answer()["prompts"]
    except BorealisError as error:
        return Section("logits", (Finding("failed", "both models", found=str(error)),))
    finally:
        asked.close()
    counts: Counter[GGMLQuantizationType] = Counter()
    for tensor in header.tensors.values():
        counts[tensor.type] += prod(tensor.shape)
    most = limit(counts)
    return Section("logits", tuple(_finding(prompt, most) for prompt in prompts))


def _finding(prompt: Mapping[str, Any], most: float) -> Finding:
    found = f"{prompt['divergence']:.2g} nats, the same likeliest token in {prompt['same']:.0%} of the places"
    good = prompt["divergence"] <= most
    what = "divergence from the checkpoint"
    return Finding("ok" if good else "failed", what, f"{prompt['tokens']} tokens", f"at most {most:.2g} nats", found)
