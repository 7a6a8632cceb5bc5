"""Reads PEFT's LoRA adapters strictly: a folder of adapter_config.json and adapter_model.safetensors.

    base_model.model.<module>.lora_A.weight   [r, in]            base_model.model.<module>.lora_B.weight   [out, r]
    base_model.model.<module>.lora_embedding_A   [r, vocabulary]    ….lora_embedding_B   [hidden, r]
    base_model.model.<module>.weight   a whole tensor, of a module in modules_to_save
    base_model.model.<module>.base_layer.weight   the base model's own tensor, saved beside an embedding's LoRA matrices

Every other PEFT method (DoRA, trained biases, …) is refused by name, since merging it as plain LoRA would be wrong.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from .adapter_folder import CONFIG, PICKLE, WEIGHTS, instead_of_peft
from .file_access import exists, extended, has_entry, open_regular, quote, recognize, shown
from .folder import own_file, read_json_object
from .safetensors import read_header
from .target_pattern import matches
from .types import Slice

PREFIX = "base_model.model."
MATRIX = re.compile(r"(.+)\.lora_(?:(?P<plain>[AB])\.weight|embedding_(?P<embedding>[AB]))")
COPY = re.compile(r"\.modules_to_save\.(?:[^.]+\.(?=[^.]+$))?")  # a raw state dict adds the adapter's name
EMBEDDINGS = ("embed_tokens", "lm_head", "word_embeddings")  # PEFT saves these whole when they are targeted or resized

RAW = re.compile(r".+\.lora_(?:[AB]\.[^.]+\.weight|embedding_[AB]\.[^.]+)")

HARMLESS = (
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config"),
    *("megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern"),
    *("revision", "runtime_config", "target_modules", "task_type", "use_rslora"),
)
"""Fields that are read here or do not affect the merged weights. Any other field must be unset."""

KNOWN = {"use_dora": "DoRA", "use_qalora": "QALoRA", "alora_invocation_tokens": "Activated LoRA"}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")
"""Values of init_lora_weights that move a part of the base weights into the adapter."""


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The update of one module: weight += scaling · B @ A; for an embedding, its transpose.

    `module` is the module's name in the base model. `a` is [r, in] and `b` [out, r]; `scaling` is alpha/r or alpha/√r.
    """

    module: str
    a: Slice
    b: Slice
    scaling: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose files agree with each other. `modules` are in the order of the file.

    `replaced` maps names in the base model to tensors saved whole; `copies` names the ones from modules_to_save, which
    PEFT copied and trained. `alpha` is the configuration's default. With `ensures_tying` (ensure_weight_tying), PEFT
    trained embedding and output layer as one matrix and stored it twice.
    """

    path: Path
    alpha: float
    fan_in_fan_out: bool
    modules: tuple[LoraModule, ...]
    replaced: dict[str, Slice]
    copies: frozenset[str] = frozenset()
    ensures_tying: bool = False

    def file(self, name: str) -> Path | None:
        """Returns the path of a companion file ("README.md"), or None without one. Errors are `Checkpoint.file`'s."""
        path = self.path / name
        return own_file(self.path, path) if has_entry(path) else None


def read_adapter(path: str | Path) -> Adapter:
    """Opens an adapter's folder without reading weights; never opens a pickle.

    Raises InvalidInput for files that are missing, damaged or disagree, and for adapters that are not plain LoRA.
    """
    folder = _adapter_folder(Path(path))
    config_path = folder / CONFIG
    config = read_json_object(own_file(folder, config_path))
    _check_kind(str(config_path), config)
    tensors = read_header(own_file(folder, _weights_path(folder)))
    pairs, replaced, copies = _group_tensors(folder / WEIGHTS, tensors, config)
    modules = tuple(_module(str(config_path), config, name, *pair) for name, pair in pairs.items())
    if not modules and not replaced:
        raise InvalidInput(f"{folder / WEIGHTS}: holds no tensors, so the adapter changes nothing")
    return Adapter(
        folder,
        _number(str(config_path), config, "lora_alpha"),
        _flag(str(config_path), config, "fan_in_fan_out"),
        modules,
        replaced,
        copies,
        _flag(str(config_path), config, "ensure_weight_tying"),
    )


def read_adapters(loras: Sequence[tuple[str | Path, float]]) -> list[tuple[Adapter, float]]:
    """Reads the adapters of (folder, scale) pairs. Raises InvalidInput also for a scale that is not finite."""
    for path, scale in loras:
        if not math.isfinite(scale):
            raise InvalidInput(f"{path}: a scale of {scale}; give a finite number")
    return [(read_adapter(path), scale) for path, scale in loras]


def _adapter_folder(path: Path) -> Path:
    if not exists(path):
        raise InvalidInput(f"{shown(str(path))}: no such folder; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    path = extended(path)
    if not path.is_dir():
        file, _ = open_regular(path)
        with file:
            description = recognize(file.read(64)) or "a file"
        raise InvalidInput(f"{path}: {description}; give the adapter's folder, with {CONFIG} and {WEIGHTS}")
    if instead := instead_of_peft(path):
        raise InvalidInput(f"{path}: {instead}")
    if not has_entry(path / CONFIG):
        hint = "it is a model itself" if (path / "config.json").exists() else "is this the folder of a PEFT adapter?"
        raise InvalidInput(f"{path}: holds no {CONFIG}; {hint}")
    return path


def _weights_path(folder: Path) -> Path:
    if has_entry(folder / WEIGHTS):
        return folder / WEIGHTS
    if (folder / PICKLE).exists():
        raise InvalidInput(f"{folder / PICKLE}: a pickle, which is never opened here; save the adapter as safetensors")
    raise InvalidInput(f"{folder}: holds no {WEIGHTS}; fetch it too")


# ---- adapter_config.json


def _check_kind(where: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InvalidInput(f"{where}: peft_type is {quote(str(kind), 30)}; only LORA can be converted or merged")
    advice = "merge the adapter with PEFT's merge_and_unload, and convert the result"
    for key, value in config.items():
        if key not in HARMLESS and value not in (None, False, "", 0) and value != [] and value != {}:
            name = f"{KNOWN[key]} ({key})" if key in KNOWN else quote(key).strip("'")
            raise InvalidInput(f"{where}: {name} is not supported; {advice}")
    if config.get("bias", "none") not in ("none", None):
        raise InvalidInput(
            f"{where}: bias is {quote(str(config['bias']), 30)}: trained biases are not supported; {advice}"
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise InvalidInput(
            f"{where}: init_lora_weights is {quote(start, 30)}: such an adapter belongs to base weights that were "
            f"changed before training; {advice}"
        )


def _flag(where: str, config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value not in (None, True, False) or type(value) is int:
        raise InvalidInput(f"{where}: {key} is {quote(str(value), 30)}; it must be true or false")
    return bool(value)


def _number(where: str, config: Mapping[str, Any], key: str) -> float:
    value = config.get(key, 8)
    if type(value) not in (int, float) or not 0 < value <= 1e9:
        raise InvalidInput(f"{where}: {key} is {quote(str(value), 30)}; it must be a positive number")
    return float(value)


def _patterned(where: str, config: Mapping[str, Any], key: str, patterns: str, module: str) -> float:
    """Returns the value of the first pattern that matches `module`, as PEFT does, else `config[key]`."""
    table = config.get(patterns) or {}
    if not isinstance(table, dict):
        raise InvalidInput(f"{where}: {patterns} must be an object")
    try:
        pattern_found = next((pattern for pattern in table if matches(pattern, module)), None)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {patterns}: {error}") from None
    return (
        _number(where, config, key) if pattern_found is None else _number(f"{where}: {patterns}", table, pattern_found)
    )


# ---- adapter_model.safetensors


def _group_tensors(
    path: Path, tensors: Mapping[str, Slice], config: Mapping[str, Any]
) -> tuple[dict[str, list[tuple[str, Slice]]], dict[str, Slice], frozenset[str]]:
    """Returns LoRA matrices by module as (kind, slice), tensors saved whole, and the names of trained copies."""
    pairs: dict[str, list[tuple[str, Slice]]] = {}
    replaced: dict[str, Slice] = {}
    copied = _modules_to_save(path.parent / CONFIG, config)
    for name, slice in tensors.items():
        plain = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and (match := MATRIX.fullmatch(plain)):
            kind = match["plain"] or f"embedding {match['embedding']}"
            pairs.setdefault(match[1], []).append((kind, slice))
            continue
        target = COPY.sub(".", plain.replace(".base_layer.", "."))
        module = target.rpartition(".")[0]
        if ".original_module." in plain and module.replace(".original_module", "").endswith(copied):
            continue  # the base model's own weights, which the trained copy replaces
        known = name.startswith(PREFIX) and module.endswith((*copied, *EMBEDDINGS))
        if "lora_" in plain or not known or target in replaced:
            raise InvalidInput(f"{path}: {quote(name)}: {_fault(name, target in replaced)}")
        replaced[target] = slice
    for target in replaced:
        # PEFT saves the weight beside LoRA matrices as base_layer, and does not load it under the plain name
        if target.rpartition(".")[0] in pairs and f"{PREFIX}{target}" in tensors:
            raise InvalidInput(f"{path}: {quote(target)}: saved whole, and there are LoRA matrices for it")
    modules = {target: target.rpartition(".")[0] for target in replaced}
    return pairs, replaced, frozenset(t for t, m in modules.items() if m.endswith(copied) and m not in pairs)


def _modules_to_save(config_path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        raise InvalidInput(f"{config_path}: modules_to_save must be a list of names")
    return tuple(saved)


def _fault(name: str, is_duplicate: bool) -> str:
    if name.endswith("lora_magnitude_vector") or "lora_magnitude_vector." in name:
        return "DoRA is not supported; merge the adapter with PEFT's merge_and_unload, and convert the result"
    if not name.startswith(PREFIX) and MATRIX.fullmatch(name):
        return (
            f"PEFT's names begin with {PREFIX}, so it would not load this; save the adapter with PEFT's save_pretrained"
        )
    if RAW.fullmatch(name):
        return "named as in a raw state dict; save the adapter with PEFT's save_pretrained"
    if name.endswith(("lora_A.bias", "lora_B.bias")):
        return "lora_bias is not supported; merge the adapter with PEFT's merge_and_unload, and convert the result"
    return "present twice" if is_duplicate else "neither a LoRA matrix nor a tensor of a module in modules_to_save"


def _module(where: str, config: Mapping[str, Any], name: str, *matrices: tuple[str, Slice]) -> LoraModule:
    kinds = dict(matrices)
    embedding = "embedding A" in kinds
    first, second = ("embedding A", "embedding B") if embedding else ("A", "B")
    if set(kinds) != {first, second}:
        raise InvalidInput(f"{where}: {quote(name)}: has {' and '.join(sorted(kinds))} of a pair; A and B are needed")
    a, b = kinds[first], kinds[second]
    rank = _patterned(where, config, "r", "rank_pattern", name)
    if len(a.shape) != 2 or len(b.shape) != 2 or not 0 < a.shape[0] == b.shape[1] or 0 in a.shape + b.shape:
        raise InvalidInput(f"{a.path}: {quote(name)}: A is {list(a.shape)[:9]} and B {list(b.shape)[:9]}; they must be "
                           "[r, in] and [out, r]")  # fmt: skip
    if rank != a.shape[0]:
        raise InvalidInput(f"{where}: {quote(name)}: its rank is {rank:g}, but A has {a.shape[0]} rows; "
                           "do these files belong together?")  # fmt: skip
    alpha = _patterned(where, config, "lora_alpha", "alpha_pattern", name)
    scaling = alpha / (math.sqrt(rank) if _flag(where, config, "use_rslora") else rank)
    return LoraModule(name, a, b, scaling, embedding)
