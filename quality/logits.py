"""The report's section on logits: a GGUF in llama.cpp beside its checkpoint in transformers."""

import importlib
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.gguf import GGUFFile
from ..checkpoint.types import GGMLQuantizationType
from ..errors import BorealisError, InvalidInput
from ..runtime.fitting.cpu_probe import extra_buffers_work
from .check_worker_client import PendingRequest
from .report import Finding, Section
from .text.sample_texts import LINES
from .weights import error_bounds

LIBRARIES = ("transformers", "torch")
LONG_TOKENS = 1400
"""Length of the longest prompt: past the sliding window of every Borealis model (512 or 1024)."""

POSITIONS = 48
"""Positions of a prompt that are compared: a row of probabilities has 262144 of them."""

ALLOWED_DIVERGENCE = 0.001
"""The mean divergence (nats) that passes for every file: llama.cpp rounds activations, which adds up in deeper models.
The trained model of 7 million weights in examples/ has 2e-7 in F16, and 0.004 with a wrong rope base."""

DIVERGENCE_PER_ERROR = 40.0
"""Mean divergence over the squared relative error of the weights. The same model has 3 (Q8_0), 0.7 (Q4_K_M) and 0.4
(Q2_K); the rest is room for models that were not measured. The section on weights has tighter bounds."""


def require_libraries() -> None:
    """Raises InvalidInput, saying how to install them, when transformers or torch is missing."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInput(f"comparing logits needs {' and '.join(missing)}: pip install {' '.join(missing)}")


@dataclass(frozen=True, slots=True)
class ReferenceLogits:
    """The checkpoint's logits [positions, vocabulary] of one prompt, at some of its `positions`."""

    tokens: list[int]
    positions: list[int]
    logits: np.ndarray


def measure_divergence(
    gguf: str, checkpoint: str, extra_buffers: bool, threads: int, recorded: str | None = None
) -> list[dict[str, Any]]:
    """For each prompt its `tokens`, the mean `divergence` KL(checkpoint ‖ GGUF) in nats, and how often the likeliest
    token is the `same`. Loads both models, one after the other; run it in a worker.

    recorded: a file that `record` wrote, which is read instead of running the checkpoint.
    """
    prompts = prompts_of(gguf)
    reference = read_recorded(Path(recorded), prompts) if recorded else _checkpoint_logits(checkpoint, prompts)
    logits = _gguf_logits(gguf, reference, extra_buffers, threads)
    return [_compared(prompt.tokens, prompt.logits, rows) for prompt, rows in zip(reference, logits, strict=True)]


def prompts_of(gguf: str) -> list[list[int]]:
    """The prompts that are compared, tokenized by the GGUF's vocabulary; the longest exceeds any sliding window."""
    from ..runtime.llama.vocabulary import open_vocabulary

    vocabulary = open_vocabulary(Path(gguf))
    begin = [] if vocabulary.bos is None else [vocabulary.bos]
    texts = [LINES[3], LINES[8], LINES[13], "\n".join(LINES * 2)]
    prompts = [[*begin, *vocabulary.tokenize(text, special=False)][:LONG_TOKENS] for text in texts]
    vocabulary.close()
    return prompts


def record(checkpoint: str, prompts: Sequence[Sequence[int]], path: Path, count: int) -> None:
    """Write the logits of `prompts` in transformers, at `count` positions of each, in half precision."""
    reference = _checkpoint_logits(checkpoint, prompts, count)
    np.savez_compressed(
        path,
        lengths=np.array([[len(e.tokens), len(e.positions)] for e in reference]),
        tokens=np.concatenate([e.tokens for e in reference]),
        positions=np.concatenate([e.positions for e in reference]),
        logits=np.concatenate([e.logits for e in reference]).astype(np.float16),
    )


def read_recorded(path: Path, prompts: Sequence[Sequence[int]]) -> list[ReferenceLogits]:
    """Read a file of `record`. Raises BorealisError when it has other prompts."""
    with np.load(path) as stored:
        ends = stored["lengths"].cumsum(axis=0)[:-1]
        tokens = [part.tolist() for part in np.split(stored["tokens"], ends[:, 0])]
        if tokens != [list(prompt) for prompt in prompts]:
            raise BorealisError(f"{path}: recorded of other prompts; record it again")
        positions, logits = np.split(stored["positions"], ends[:, 1]), np.split(stored["logits"], ends[:, 1])
    rows = zip(tokens, positions, logits, strict=True)
    return [ReferenceLogits(ids, at.tolist(), values.astype(np.float32)) for ids, at, values in rows]


def _positions(tokens: int, count: int) -> list[int]:
    """The positions of a prompt whose next-token probabilities are compared, the last one among them."""
    return sorted({tokens - 1, *np.linspace(0, tokens - 1, count).astype(int).tolist()})


def _checkpoint_logits(folder: str, prompts: Sequence[Sequence[int]], count: int = POSITIONS) -> list[ReferenceLogits]:
    torch: Any = importlib.import_module("torch")
    loader: Any = importlib.import_module("transformers").AutoModelForCausalLM
    model = loader.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True, trust_remote_code=False)
    model.eval()
    places = [_positions(len(prompt), count) for prompt in prompts]
    with torch.inference_mode():
        return [
            ReferenceLogits(list(ids), at, model(torch.tensor([list(ids)])).logits[0, at].float().numpy())
            for ids, at in zip(prompts, places, strict=True)
        ]


def _gguf_logits(
    path: str, reference: Sequence[ReferenceLogits], extra_buffers: bool, threads: int
) -> list[np.ndarray]:
    from ..runtime.llama.engine import BATCH, Engine

    longest = max(len(e.tokens) for e in reference)
    placing: dict[str, Any] = {"context": longest, "outputs": BATCH, "gpu_layers": 0}
    engine = Engine(Path(path), threads=threads, extra_buffers=extra_buffers, **placing)
    try:
        return [engine.logits(e.tokens, e.positions) for e in reference]
    finally:
        engine.close()


def _compared(prompt: Sequence[int], reference: np.ndarray, gguf: np.ndarray) -> dict[str, Any]:
    width = min(reference.shape[1], gguf.shape[1])  # either vocabulary may be padded
    p, q = _log_softmax(reference[:, :width]), _log_softmax(gguf[:, :width])
    divergence = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    same = float((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    return {"tokens": len(prompt), "divergence": divergence, "same": same}


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def _max_divergence(types: Mapping[GGMLQuantizationType, int]) -> float:
    """The mean divergence that a file with so many weights of each type may have."""
    error = sum(count * error_bounds.TYPICAL.get(type, 1.0) ** 2 for type, count in types.items())
    return ALLOWED_DIVERGENCE + DIVERGENCE_PER_ERROR * error / max(1, sum(types.values()))


def check_logits(header: GGUFFile, checkpoint: Path, threads: int, recorded: Path | None = None) -> Section:
    """The section on logits. A worker loads both models, which takes their memory and their time: it has no time limit.

    recorded: a file of `record`, which is read instead of running the checkpoint.
    """
    request: dict[str, Any] = {"gguf": str(header.path), "checkpoint": str(checkpoint), "threads": threads}
    request |= {"extra_buffers": extra_buffers_work(), "recorded": str(recorded) if recorded else None}
    pending = PendingRequest("compute_logits", "both models computed logits", request, time_limit=False)
    try:
        prompts = pending.result()["prompts"]
    except BorealisError as error:
        return Section("logits", (Finding("failed", "both models", found=str(error)),))
    finally:
        pending.close()
    counts: Counter[GGMLQuantizationType] = Counter()
    for tensor in header.tensors.values():
        counts[tensor.type] += prod(tensor.shape)
    limit = _max_divergence(counts)
    return Section("logits", tuple(_finding(prompt, limit) for prompt in prompts))


def _finding(prompt: Mapping[str, Any], limit: float) -> Finding:
    result = f"{prompt['divergence']:.2g} nats, the same likeliest token in {prompt['same']:.0%} of the places"
    status = "ok" if prompt["divergence"] <= limit else "failed"
    what = "divergence from the checkpoint"
    return Finding(status, what, f"{prompt['tokens']} tokens", f"at most {limit:.2g} nats", result)
