"""Recognizes weights in other formats than safetensors, and words the command that converts them."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .adapter_folder import command_line
from .file_access import shown

ZERO = "zero_to_fp32.py"
"""DeepSpeed copies this script into each checkpoint. The advice runs DeepSpeed's own module, not the copy."""
SAVE_AGAIN = 'set "stage3_gather_16bit_weights_on_model_save": true in the DeepSpeed configuration and save it again'
SHARDS = "*.distcp"
MAX_ENTRIES = 1000
"""At most this many entries of a folder are searched for checkpoints."""

PICKLED = (
    "import glob, torch, safetensors.torch as s; s.save_file({name: value.contiguous() for file in "
    "glob.glob('*_model_*_EPOCH.pt') for name, value in torch.load(file, weights_only=True).items()}, "
    "'model.safetensors', {'format': 'pt'})"
)
LOADED = "from transformers import AutoModelForCausalLM as M; M.from_pretrained('.', dtype='auto').save_pretrained('.')"
META = "Meta's own format, which is not read; fetch the same model in transformers' format (config.json, *.safetensors)"


@dataclass(frozen=True, slots=True)
class Format:
    """`pattern` matches file names of this format; `advice` may contain the pattern's group names, to be replaced."""

    pattern: re.Pattern[str]
    advice: str


FORMATS = (
    Format(
        re.compile(r"hf_model_\d+_(?P<EPOCH>\d+)\.pt"),
        f"torchtune's pickled weights; set safe_serialization: True in its checkpointer, or run in this folder: "
        f"python -c {shlex.quote(PICKLED)}",
    ),
    Format(re.compile(r"meta_model_\d+\.pt|consolidated\.\d+\.pth"), META),
    Format(
        re.compile(r"(ft-|pytorch_)?model(-\d+-of-\d+)?\.bin"),
        f"pickled weights; convert it to safetensors first, in this folder: python -c {shlex.quote(LOADED)}",
    ),
    Format(
        re.compile(r"(?!rng_state|optimizer|scheduler|training_args|scaler|random_states).+\.(pt|pth|bin|ckpt)"),
        "a pickle; convert it to safetensors first: load it where it was made and call save_pretrained",
    ),
)
"""The first format that matches a file is reported. Of several files, the one with the highest number is named."""


def other_weights(folder: Path) -> str:
    """Describes the weights in a folder without safetensors, with advice; empty if no format is recognized."""
    if gather := _zero_shards(folder):
        return f" It holds DeepSpeed's shards of the weights; {gather}"
    if shards := _fsdp_shards(folder):
        return f" It holds {shards}"
    names = sorted(entry.name for entry in _entries(folder))
    for format in FORMATS:
        matches = [match for name in names if (match := format.pattern.fullmatch(name))]
        if matches:
            newest = max(matches, key=lambda match: _numbers(match.string)[::-1])
            advice = format.advice
            for group, text in newest.groupdict().items():
                advice = advice.replace(group, text)
            return f" It holds {shown(newest.string)}, {advice}"
    return _checkpoint_below(folder)


def empty_tensors(folder: Path) -> str:
    """The advice for a model.safetensors whose tensors have no elements."""
    return f"weights that DeepSpeed ZeRO-3 did not gather are empty; {_zero_shards(folder) or SAVE_AGAIN}"


def _zero_shards(folder: Path) -> str | None:
    if not (folder / ZERO).exists():
        return None
    module = "deepspeed.utils.zero_to_fp32"
    gather = command_line("python", "-m", module, str(folder), str(folder), "--safe_serialization")
    return f"gather them: {gather}"


def _fsdp_shards(folder: Path) -> str | None:
    """Finds PyTorch's distributed checkpoints (FSDP) in the folder or its subfolders, and words the merge command."""
    places = [place for place in (folder, *_subfolders(folder)) if next(place.glob(SHARDS), None)]
    places = [place for place in places if not place.name.startswith("optimizer")]
    if not places:
        return None
    target = folder.parent if places[0] == folder else folder
    return f"sharded FSDP weights; run: {command_line('accelerate', 'merge-weights', str(places[0]), str(target))}"


def _checkpoint_below(folder: Path) -> str:
    """Names the newest checkpoint among subfolders: trainers save one per epoch, numbered upwards."""
    checkpoints = [
        path
        for path in _subfolders(folder)
        if (path / "config.json").exists() and next(path.glob("*.safetensors"), None)
    ]
    if not checkpoints:
        return ""
    newest = max(checkpoints, key=lambda path: _numbers(path.name))
    return f" Its folder {shown(newest.name)} is a checkpoint: {command_line('borealis-gguf', 'convert', str(newest))}"


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d{1,12}", name)]


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry, _ in zip(entries, range(MAX_ENTRIES), strict=False):
            yield entry


def _subfolders(folder: Path) -> list[Path]:
    return sorted(folder / entry.name for entry in _entries(folder) if entry.is_dir(follow_symlinks=False))
