"""Chooses the device, layers and context of a model from its header and the free memory, before it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoint.gguf import GGUFFile
from ...errors import InvalidInput
from ...size_format import format_nbytes
from ..llama.devices import Device, device_array
from ..llama.limits import CELL_MULTIPLE, DEFAULT_CONTEXT
from .memory_estimate import MemoryNeed, ModelSizes, Repack, estimate, sizes, vision_need

HOST_MARGIN = 256 << 20  # a vocabulary of 262144 takes 100 MB; the rest is for Python and the threads
GPU_MARGIN = 1 << 30  # for the driver and cuBLAS's buffers; as much as llama.cpp's --fit leaves free
SPLIT_NONE, SPLIT_LAYER = 0, 1  # enum llama_split_mode


@dataclass(frozen=True, slots=True)
class Placement:
    """What was chosen: `cpu` and `gpu` are the bytes needed there; `name` is ggml's name of the device."""

    device: str
    kind: str
    index: int
    name: str
    n_gpu_layers: int
    n_layers: int
    context: int
    parallel: int
    outputs: int
    cpu: MemoryNeed
    gpu: MemoryNeed
    reason: str

    def describe(self) -> str:
        """One line: what was chosen, the memory it needs, and why."""
        need = self.cpu + self.gpu
        times = f"{self.parallel} x " if self.parallel > 1 else ""
        where = f"{self.n_gpu_layers} of {self.n_layers} layers" if self.n_gpu_layers else "all layers"
        spare = f" ({format_nbytes(need.spare)} of them only to load)" if need.spare else ""
        cache = f"{format_nbytes(need.cache + need.copies)} cache"
        parts = f"{format_nbytes(need.weights)} weights{spare}, {cache}, {format_nbytes(need.compute)} to compute"
        split = f" ({format_nbytes(self.gpu.total)} there)" if self.n_gpu_layers else ""
        return f"{where} on {self.device}, context {times}{self.context}: {parts}{split}; {self.reason}"


def choose_placement(
    header: GGUFFile,
    *,
    device: str = "auto",
    gpu_layers: int | str = "auto",
    context: int | None = None,
    parallel: int = 1,
    devices: Sequence[Device],
    mmproj: GGUFFile | None = None,
    outputs: int = 0,
    repack: Repack | None = None,
    adapters: Sequence[GGUFFile] = (),
) -> Placement:
    """Choose one of `devices`, layers on it and a context, and check that all of it fits. Pure.

    device: auto, cpu, metal, cuda, cuda:N, vulkan:N or any other label of `devices`. gpu_layers: negative is all.
    context: tokens of each of the `parallel` sequences; None is the model's own, at most DEFAULT_CONTEXT, and less
    only where that does not fit. outputs: tokens of a batch whose logits are wanted, 0 is all.
    repack, adapters: see `memory_estimate.sizes`. Raises InvalidInput where nothing fits, naming the largest context
    that does.
    """
    vision = vision_need(mmproj) if mmproj else MemoryNeed()
    request = _Request(header, sizes(header, repack, adapters), parallel, outputs, vision)
    cpu = next((d for d in devices if d.type == "cpu"), None)
    if cpu is None:
        raise InvalidInput("no CPU among the devices; see borealis-gguf devices")
    target = pick_device(device, devices)
    requested = _checked_context(request, context)
    layers = _requested_layers(gpu_layers)
    if layers is not None and layers > 0 and not target.is_gpu:
        raise InvalidInput(f"{layers} layers on a GPU, but the device is the CPU; leave gpu_layers out")
    choices = _layer_choices(target, layers, device, request.sizes.n_layers)
    options = [_Option(request, cpu, target if n else cpu, n) for n in choices]
    for option in options:
        if option.fits(requested):
            return option.placement(requested, _reason(option, options, devices, layers))
    largest = [option.largest() for option in options]
    best = max(range(len(options)), key=lambda i: largest[i])
    if context is not None or not largest[best]:
        raise InvalidInput(options[best if largest[best] else -1].shortage(requested, largest[best]))
    return options[best].placement(largest[best], f"a context of {requested} does not fit into what is free")


def pick_device(device: str, devices: Sequence[Device]) -> Device:
    """The one of `devices` named `device`; auto: the GPU with most free memory, else the CPU."""
    requested = device.lower()
    gpus = [d for d in devices if d.is_gpu]
    if requested == "auto":
        usable = [d for d in gpus if d.total] or [next(d for d in devices if d.type == "cpu")]
        return max(usable, key=lambda d: (d.type != "igpu", d.free))
    found = next((d for d in devices if requested in (f"{d.kind}:{d.index}", d.label.lower())), None)
    found = found or next((d for d in devices if d.kind == requested), None)
    if found is None or found.type not in ("cpu", "gpu", "igpu"):
        there = ", ".join(d.label.lower() for d in devices if d.is_gpu or d.type == "cpu")
        raise InvalidInput(f"device {device}: llama.cpp has none here, only {there}; see borealis-gguf devices")
    return found


def model_params(placement: Placement) -> dict[str, Any]:
    """Fields of llama_model_params that put the model on exactly this device, and on no GPU for the CPU."""
    on_gpu = placement.n_gpu_layers > 0
    return {
        "devices": device_array((placement.name,) if on_gpu else ()),
        "n_gpu_layers": placement.n_gpu_layers,
        "main_gpu": 0,  # of the list above
        "split_mode": SPLIT_NONE if on_gpu else SPLIT_LAYER,
    }


@dataclass(frozen=True, slots=True)
class _Request:
    header: GGUFFile
    sizes: ModelSizes
    parallel: int
    outputs: int
    vision: MemoryNeed


@dataclass(frozen=True, slots=True)
class _Option:
    """A number of layers on `target`; 0 where `target` is the CPU."""

    request: _Request
    cpu: Device
    target: Device
    n_gpu_layers: int

    def needs(self, context: int) -> tuple[MemoryNeed, MemoryNeed]:
        request = self.request
        cpu, gpu = estimate(request.sizes, context, request.parallel, self.n_gpu_layers, request.outputs)
        return (cpu, gpu + request.vision) if self.n_gpu_layers else (cpu + request.vision, gpu)

    def tightest(self, context: int) -> tuple[int, int, Device]:
        """(bytes left over, bytes needed, device) of the tightest device; one of unknown memory is never tight."""
        cpu, gpu = self.needs(context)
        on_host = cpu.lasting + (gpu.total if self.target.unified else 0) + HOST_MARGIN
        checks = [(self.cpu.free - on_host, on_host, self.cpu)] if self.cpu.total else []
        if self.n_gpu_layers and self.target.total:
            on_gpu = gpu.total + GPU_MARGIN
            checks.append((self.target.free - on_gpu, on_gpu, self.target))
        return min(checks, key=lambda check: check[0], default=(0, 0, self.cpu))

    def fits(self, context: int) -> bool:
        return self.tightest(context)[0] >= 0

    def largest(self) -> int:
        """The largest context that fits, a multiple of 256 or all the model can have; 0 when none does."""
        trained = self.request.sizes.trained
        if self.fits(trained):
            return trained
        low, high = 0, trained // CELL_MULTIPLE
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(middle * CELL_MULTIPLE) else (low, middle - 1)
        return low * CELL_MULTIPLE

    def placement(self, context: int, reason: str) -> Placement:
        cpu, gpu = self.needs(context)
        device, request = self.target, self.request
        return Placement(
            device.label,
            device.kind,
            device.index,
            device.name,
            self.n_gpu_layers,
            request.sizes.n_layers,
            context,
            request.parallel,
            request.outputs,
            cpu,
            gpu,
            reason,
        )

    def shortage(self, context: int, largest: int) -> str:
        _, needed, device = self.tightest(context)
        times = f"{self.request.parallel} x " if self.request.parallel > 1 else ""
        instead = {0: "", 1: ", or the CPU"}.get(self.n_gpu_layers, ", or fewer layers on the GPU")
        advice = f"no context fits: use a smaller model or preset{instead}"
        if largest:
            advice = f"the largest context that fits is {largest}"
        return (
            f"{self.request.header.path}: a context of {times}{context} tokens needs {format_nbytes(needed)} on "
            f"{device.label}, {format_nbytes(device.free)} are free; {advice}"
        )


def _checked_context(request: _Request, context: int | None) -> int:
    path, trained = request.header.path, request.sizes.trained
    requested = min(trained, DEFAULT_CONTEXT) if context is None else context
    if request.parallel < 1:
        raise InvalidInput(f"parallel: {request.parallel} is not 1 or more")
    if not 0 < requested <= trained:
        raise InvalidInput(f"{path}: a context of {requested} tokens; this model can have 1 to {trained}")
    return requested


def _requested_layers(gpu_layers: int | str) -> int | None:
    """None for auto."""
    if gpu_layers == "auto":
        return None
    try:
        return int(gpu_layers)
    except ValueError:
        raise InvalidInput(f"gpu layers: {gpu_layers} is neither a number nor auto") from None


def _layer_choices(target: Device, requested: int | None, device: str, n_layers: int) -> list[int]:
    """Numbers of layers to try, the best first. The CPU alone is tried only where no GPU was requested."""
    if not target.is_gpu:
        return [0]
    if requested is None:
        return list(range(n_layers, 0 if device.lower() != "auto" else -1, -1))
    return [n_layers if requested < 0 else min(requested, n_layers)]


def _reason(option: _Option, options: Sequence[_Option], devices: Sequence[Device], requested: int | None) -> str:
    target = option.target
    free = f"{format_nbytes(target.free)} are free on {target.label}"
    if requested is not None:
        return f"as asked, {free}"
    if option is options[0]:
        none = not any(d.is_gpu for d in devices)
        return f"{free}, and llama.cpp sees no GPU" if none else free
    if option.n_gpu_layers:
        return f"more do not fit, {free}"
    gpu = options[0].target
    return f"nothing fits on {gpu.label}, where {format_nbytes(gpu.free)} are free"
