"""Recognizes folders that are no checkpoint in transformers' format, and words advice for them."""

import re
import shlex
from pathlib import Path

from .file_access import shown

STEP = re.compile(r"checkpoint-(\d{1,12})")
MISTRAL_WEIGHTS, MISTRAL_PARAMS, MISTRAL_TOKENIZER = "consolidated*.safetensors", "params.json", "tekken.json"
FETCH = "of the same model in transformers' format (often in the same repository)"


def what_instead(folder: Path) -> str | None:
    """Describes a folder that lacks config.json or model weights, with advice; None if it is not recognized."""
    return _mistral_format(folder) or _trainer_output(folder)


def _mistral_format(folder: Path) -> str | None:
    weights = sorted(path.name for path in folder.glob(MISTRAL_WEIGHTS))
    if not weights:
        return None
    files = shown(weights[0]) + (f" and {MISTRAL_PARAMS}" if (folder / MISTRAL_PARAMS).exists() else "")
    return (
        f"a model in Mistral's own format ({files}), which is not read; fetch config.json, "
        f"model*.safetensors and tokenizer.json {FETCH}"
    )


def _trainer_output(folder: Path) -> str | None:
    """Recognizes a trainer's output folder by its subfolders checkpoint-STEP, and names the newest one."""
    if (folder / "config.json").exists():
        return None
    steps = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := STEP.fullmatch(path.name))}
    steps = {step: path for step, path in steps.items() if (path / "config.json").exists()}
    if not steps:
        return None
    newest = steps[max(steps)]
    argument = shlex.quote(str(newest)) if str(newest).isprintable() else newest.name
    return (
        f"a trainer's output folder; its newest checkpoint is {newest.name}: borealis-gguf convert {argument}, or "
        f"borealis-gguf quantize PRESET -m {argument}"
    )


def no_tokenizer(folder: Path) -> str:
    """The advice for a checkpoint without tokenizer.model and tokenizer.json."""
    if (folder / MISTRAL_TOKENIZER).exists():
        return (
            f"{MISTRAL_TOKENIZER} is a tokenizer in Mistral's own format, which is not read; fetch tokenizer.json and "
            f"tokenizer_config.json {FETCH}"
        )
    if (folder / "vocab.json").exists():
        return (
            "vocab.json is not read; write tokenizer.json with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    return "neither tokenizer.model nor tokenizer.json is there; fetch one of them"
