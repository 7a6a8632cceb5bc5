"""The devices the loaded llama.cpp can compute on.

llama-cpp-python does not bind ggml's device list, so its few functions are bound here. They must come from the libggml
that libllama uses: a folder may hold it under two names, and each would have a device list of its own.
"""

import ctypes
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from typing import Any

from ...errors import BorealisError
from ...quantize.encoders.libraries import library_folder
from ..fitting.host_memory import host_memory

TYPES = ("cpu", "gpu", "igpu", "accel", "meta")
"""`enum ggml_backend_dev_type`: igpu is a GPU that uses the host's memory, accel helps the CPU (BLAS)."""

KINDS = {"MTL": "metal"}
NAMES = {"cpu": "CPU", "cuda": "CUDA", "metal": "Metal", "rocm": "ROCm", "vulkan": "Vulkan"}

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_dev_count": (ctypes.c_size_t, []),
    "ggml_backend_dev_get": (ctypes.c_void_p, [ctypes.c_size_t]),
    "ggml_backend_dev_by_name": (ctypes.c_void_p, [ctypes.c_char_p]),
    "ggml_backend_dev_name": (ctypes.c_char_p, [ctypes.c_void_p]),
    "ggml_backend_dev_description": (ctypes.c_char_p, [ctypes.c_void_p]),
    "ggml_backend_dev_type": (ctypes.c_int, [ctypes.c_void_p]),
    "ggml_backend_dev_memory": (None, [ctypes.c_void_p] + 2 * [ctypes.POINTER(ctypes.c_size_t)]),
    "ggml_backend_dev_backend_reg": (ctypes.c_void_p, [ctypes.c_void_p]),
    "ggml_backend_reg_name": (ctypes.c_char_p, [ctypes.c_void_p]),
    "ggml_backend_reg_get_proc_address": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A device for a model. `index` counts the devices of a `kind`; `name` is ggml's own, unique in this process.

    Memory is in bytes; `total` 0: unknown. `unified`: the device shares the host's memory.
    """

    kind: str
    index: int
    name: str
    description: str
    total: int
    free: int
    type: str = "gpu"
    unified: bool = False
    features: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name that --device takes, in any case: CPU, Metal, CUDA:1."""
        name = NAMES.get(self.kind, self.kind)
        return name if self.kind in ("cpu", "metal") and not self.index else f"{name}:{self.index}"

    @property
    def is_gpu(self) -> bool:
        return self.type in ("gpu", "igpu")


def devices() -> tuple[Device, ...]:
    """The CPU first, then all others in llama.cpp's order. Raises BorealisError when llama.cpp cannot be used."""
    found: list[Device] = []
    for index in range(ggml("ggml_backend_dev_count")()):
        found.append(_describe(ggml("ggml_backend_dev_get")(index), found))
    return tuple(sorted(found, key=lambda device: device.type != "cpu"))


def device_handle(name: str) -> int:
    """The `ggml_backend_dev_t` of the device with ggml's `name`. Raises BorealisError when there is none."""
    handle = ggml("ggml_backend_dev_by_name")(name.encode())
    if not handle:
        raise BorealisError(f"{name}: llama.cpp has no such device; see borealis-gguf devices")
    return handle


@cache
def device_array(names: tuple[str, ...]) -> int:
    """The address of a NULL-terminated `ggml_backend_dev_t` array, for llama_model_params; it is never freed."""
    array = (ctypes.c_void_p * (len(names) + 1))(*map(device_handle, names), None)
    _device_arrays.append(array)
    return ctypes.addressof(array)


_device_arrays: list[Any] = []


def _describe(handle: int, before: Sequence[Device]) -> Device:
    registry = ggml("ggml_backend_dev_backend_reg")(handle)
    title = _string("ggml_backend_reg_name", registry)
    kind = KINDS.get(title, title.lower())
    type = TYPES[ggml("ggml_backend_dev_type")(handle)]
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml("ggml_backend_dev_memory")(handle, ctypes.byref(free), ctypes.byref(total))
    memory = host_memory() if type == "cpu" else None
    return Device(
        kind,
        sum(device.kind == kind for device in before),
        _string("ggml_backend_dev_name", handle),
        _string("ggml_backend_dev_description", handle).strip(),
        memory.total if memory else total.value,
        memory.free if memory else free.value,
        type,
        type == "igpu" or (kind == "metal" and platform.machine() == "arm64"),
        _features(registry),
    )


class _Feature(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


def _features(registry: int) -> tuple[str, ...]:
    """CPU features that a backend was compiled for and found here, as it names them."""
    address = ggml("ggml_backend_reg_get_proc_address")(registry, b"ggml_backend_get_features")
    if not address:
        return ()
    rows = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), ctypes.c_void_p)(address)(registry)
    named = takewhile(lambda row: row.name, (rows[index] for index in count())) if rows else ()
    pairs = [(row.name.decode(), row.value.decode()) for row in named]
    return tuple(name if value == "1" else f"{name}={value}" for name, value in pairs if value != "0")


def _string(function: str, handle: int) -> str:
    return (ggml(function)(handle) or b"").decode("utf-8", "replace")


def ggml(name: str, signature: tuple[Any, list[Any]] | None = None) -> Any:
    """A function of the loaded ggml; `signature` (result, arguments) if it is not in _SIGNATURES.

    On Windows every library has its own symbols, so they are searched in turn.
    """
    for library in _libraries():
        function = getattr(library, name, None)
        if function is not None:
            function.restype, function.argtypes = signature or _SIGNATURES[name]
            return function
    raise BorealisError(f"llama.cpp's libraries have no {name}; reinstall llama-cpp-python")


@cache
def _libraries() -> tuple[Any, ...]:
    """The loaded and initialized libraries that hold ggml's functions."""
    try:
        import llama_cpp.llama_cpp as llama

        from .vocabulary import init_llama
    except (ImportError, OSError, RuntimeError) as error:
        raise BorealisError(f"llama-cpp-python cannot be loaded ({error}); reinstall it") from error
    init_llama()
    llama.llama_supports_gpu_offload()  # loads the backends where they are libraries of their own
    loaded = llama._lib  # searching it searches the libraries it was linked with
    if sys.platform != "win32":
        return (loaded,)
    files = [library_folder() / f"{prefix}{stem}.dll" for prefix in ("", "lib") for stem in ("ggml", "ggml-base")]
    return (loaded, *(ctypes.CDLL(str(file)) for file in files if file.is_file()))
