"""Recognizes folders that hold an adapter instead of a model, and words the command that uses the adapter."""

import os
import shlex
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from .file_access import has_entry, quote, shown
from .strict_json import read_json_object

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
MLX_WEIGHTS = "adapters.safetensors"
MLX_KEYS = ("fine_tune_type", "lora_parameters", "lora_layers")

MAX_ENTRIES = 1000
"""At most this many entries of a folder are searched for adapters in subfolders."""


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter on disk. `method` is its `peft_type` or "MLX"; `base` is its base model, if printable."""

    path: Path
    method: str
    base: str | None

    @property
    def what(self) -> str:
        kind = {"LORA": "a LoRA adapter", "MLX": "an MLX adapter"}.get(self.method)
        return (kind or f"a PEFT adapter ({quote(self.method, 30)})") + (f" of {self.base}" if self.base else "")

    @property
    def advice(self) -> str:
        """The advice to show when a user gives this adapter in place of a model."""
        if self.method != "LORA":
            return self.merge_first
        base, folder = self.base or "BASE", _argument(self.path, "DIR")
        convert = command_line("borealis-gguf", "convert", base, "--lora", folder)
        quantize = command_line("borealis-gguf", "quantize", "PRESET", "-m", base, "--lora", folder)
        return f"{convert}, or {quantize}{self._base_hint}"

    @property
    def merge_first(self) -> str:
        """The advice to show for an adapter whose kind this package does not read."""
        if self.method != "MLX":
            return f"merge it with PEFT's merge_and_unload, save the model and convert that{self._base_hint}"
        folder = _argument(self.path, "DIR")
        fused = f"{folder.rstrip('/')}-fused" if folder not in (".", "..") else "fused"
        arguments = ("--adapter-path", folder, "--save-path", fused, "--dequantize")
        fuse = command_line("mlx_lm.fuse", "--model", self.base or "BASE", *arguments)
        return f"{fuse}, then {command_line('borealis-gguf', 'convert', fused)}{self._base_hint}"

    @property
    def _base_hint(self) -> str:
        return "" if self.base else "; BASE is the model it was trained on"


def find_adapter(folder: Path) -> AdapterFolder | None:
    """Returns the adapter whose files lie directly in `folder`, or None."""
    names = {name for name in (CONFIG, WEIGHTS, PICKLE, MLX_WEIGHTS) if has_entry(folder / name)}
    if not names:
        return None
    try:
        config = read_json_object(folder / CONFIG) if CONFIG in names else {}
    except InvalidInput:
        config = {}
    is_mlx = "peft_type" not in config and (MLX_WEIGHTS in names or any(key in config for key in MLX_KEYS))
    method = "MLX" if is_mlx else str(config.get("peft_type", "LORA"))
    return AdapterFolder(folder, method, _printable_base(config.get("model" if is_mlx else "base_model_name_or_path")))


def adapters_below(folder: Path) -> list[AdapterFolder]:
    """Returns the adapters in subfolders, where PEFT saves a named adapter and a trainer saves each checkpoint.

    A subfolder that also holds a model is skipped: torchtune saves an adapter together with the merged model.
    """
    return [adapter for path in _subfolders(folder) if not _holds_model(path) and (adapter := find_adapter(path))]


def _holds_model(folder: Path) -> bool:
    weights = (path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter"))
    return (folder / "config.json").exists() and any(weights)


def instead_of_model(folder: Path) -> str | None:
    """Describes the adapter in a folder that holds no model, with the command to type; None without an adapter."""
    if adapter := find_adapter(folder):
        return f"{adapter.what}, not a model: {adapter.advice}"
    if below := adapters_below(folder):
        return f"no model; {_name_subfolders(below)}: {below[0].advice}"
    return None


def instead_of_peft(folder: Path) -> str | None:
    """Describes an MLX adapter, or adapters in subfolders, in a folder given as a PEFT adapter; None without one."""
    adapter = find_adapter(folder)
    if adapter and adapter.method == "MLX":
        return f"{adapter.what}, not a PEFT adapter; fuse it first: {adapter.merge_first}"
    if not adapter and (below := adapters_below(folder)):
        folders = " or ".join(command_line("--lora", _argument(each.path, "DIR")) for each in below[:3])
        return f"holds no {CONFIG}; {_name_subfolders(below)}: give {folders}"
    return None


def command_line(*words: str) -> str:
    """Quotes `words` for the shell; DIR replaces a word with unprintable characters."""
    words = tuple(word if word.isprintable() else "DIR" for word in words)
    if os.name == "nt":
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)


def _name_subfolders(below: list[AdapterFolder]) -> str:
    names = ", ".join(shown(each.path.name) for each in below[:3]) + (", …" if len(below) > 3 else "")
    return f"its folder {names} is {below[0].what}" if len(below) == 1 else f"its folders {names} are adapters"


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in islice(folder.iterdir(), MAX_ENTRIES) if path.is_dir())
    except OSError:
        return []


def _argument(path: Path, placeholder: str) -> str:
    """Returns a path as a command's argument; `placeholder` if it is unprintable or begins with a dash."""
    text = str(path)
    return text if text.isprintable() and not text.startswith("-") else placeholder


def _printable_base(value: Any) -> str | None:
    usable = isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() and not value.startswith("-")
    return value if usable else None
