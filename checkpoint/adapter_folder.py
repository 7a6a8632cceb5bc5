"""Folders that hold an adapter instead of a model: what kind it is, and the command that uses it."""

import os
import shlex
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from .file_access import quote, shown
from .strict_json import read_json_object

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
MLX_WEIGHTS = "adapters.safetensors"
MLX_KEYS = ("fine_tune_type", "lora_parameters", "lora_layers")

MAX_ENTRIES = 1000
"""Entries of a folder that are looked at for adapters in subfolders."""


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter on disk. `method` is PEFT's ("LORA"), or "MLX"; `base` is the model it names, if that can be shown."""

    path: Path
    method: str
    base: str | None

    @property
    def what(self) -> str:
        kind = {"LORA": "a LoRA adapter", "MLX": "an MLX adapter"}.get(self.method)
        return (kind or f"a PEFT adapter ({quote(self.method, 30)})") + (f" of {self.base}" if self.base else "")

    @property
    def advice(self) -> str:
        """What to do where a model was expected."""
        if self.method != "LORA":
            return self.merge_first
        base, folder = self.base or "BASE", _argument(self.path, "DIR")
        convert = command_line("borealis-gguf", "convert", base, "--lora", folder)
        quantize = command_line("borealis-gguf", "quantize", "PRESET", "-m", base, "--lora", folder)
        return f"{convert}, or {quantize}{self._unnamed}"

    @property
    def merge_first(self) -> str:
        """What to do with an adapter that this package does not read."""
        if self.method != "MLX":
            return f"merge it with PEFT's merge_and_unload, save the model and convert that{self._unnamed}"
        folder = _argument(self.path, "DIR")
        fused = f"{folder.rstrip('/')}-fused" if folder not in (".", "..") else "fused"
        arguments = ("--adapter-path", folder, "--save-path", fused, "--dequantize")
        fuse = command_line("mlx_lm.fuse", "--model", self.base or "BASE", *arguments)
        return f"{fuse}, then {command_line('borealis-gguf', 'convert', fused)}{self._unnamed}"

    @property
    def _unnamed(self) -> str:
        return "" if self.base else "; BASE is the model it was trained on"


def find_adapter(folder: Path) -> AdapterFolder | None:
    """The adapter whose files lie directly in `folder`."""
    names = {name for name in (CONFIG, WEIGHTS, PICKLE, MLX_WEIGHTS) if (folder / name).exists()}
    if not names:
        return None
    try:
        config = read_json_object(folder / CONFIG) if CONFIG in names else {}
    except InvalidInput:
        config = {}
    is_mlx = "peft_type" not in config and (MLX_WEIGHTS in names or any(key in config for key in MLX_KEYS))
    method = "MLX" if is_mlx else str(config.get("peft_type", "LORA"))
    return AdapterFolder(folder, method, _base(config.get("model" if is_mlx else "base_model_name_or_path")))


def adapters_below(folder: Path) -> list[AdapterFolder]:
    """Those in subfolders: PEFT saves an adapter with a name of its own there, a trainer each checkpoint.

    One beside a model is not meant: torchtune saves the adapter together with what it was merged into.
    """
    return [found for path in _subfolders(folder) if not _holds_model(path) and (found := find_adapter(path))]


def _holds_model(folder: Path) -> bool:
    weights = (path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter"))
    return (folder / "config.json").exists() and any(weights)


def instead_of_model(folder: Path) -> str | None:
    """What a folder without a model holds, if that is an adapter, with the command to type."""
    if found := find_adapter(folder):
        return f"{found.what}, not a model: {found.advice}"
    if below := adapters_below(folder):
        return f"no model; {_where(below)}: {below[0].advice}"
    return None


def instead_of_peft(folder: Path) -> str | None:
    """What a folder that is not a PEFT adapter holds, if that is an adapter of another kind or place."""
    found = find_adapter(folder)
    if found and found.method == "MLX":
        return f"{found.what}, not a PEFT adapter; fuse it first: {found.merge_first}"
    if not found and (below := adapters_below(folder)):
        folders = " or ".join(command_line("--lora", _argument(each.path, "DIR")) for each in below[:3])
        return f"holds no {CONFIG}; {_where(below)}: give {folders}"
    return None


def command_line(*words: str) -> str:
    """`words` as one types them in a shell; DIR stands for what no terminal could show."""
    words = tuple(word if word.isprintable() else "DIR" for word in words)
    if os.name == "nt":
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)


def _where(below: list[AdapterFolder]) -> str:
    names = ", ".join(shown(each.path.name) for each in below[:3]) + (", …" if len(below) > 3 else "")
    return f"its folder {names} is {below[0].what}" if len(below) == 1 else f"its folders {names} are adapters"


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in islice(folder.iterdir(), MAX_ENTRIES) if path.is_dir())
    except OSError:
        return []


def _argument(path: Path, placeholder: str) -> str:
    """A path as an argument of a command; the placeholder where a terminal could not show it."""
    text = str(path)
    return text if text.isprintable() and not text.startswith("-") else placeholder


def _base(value: Any) -> str | None:
    usable = isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() and not value.startswith("-")
    return value if usable else None
