"""Where a model goes, and whether it fits there: decided from its header and the free memory, before it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoint.gguf import GGUFFile
from ...errors import InvalidInput
from ..llama.devices import Device, device_array
from .memory_estimate import CELLS, Need, Repack, Sizes, estimate, sizes, vision_need

DEFAULT_CONTEXT = 8192
"""Tokens, unless the model has fewer or the caller says otherwise."""

HOST_MARGIN = 256 << 20  # a vocabulary of 262144 takes 100 MB, and Python and the threads something
GPU_MARGIN = 1 << 30  # the driver's own, matrices on the way to cuBLAS; what llama.cpp's --fit leaves free too
SPLIT_NONE, SPLIT_LAYER = 0, 1  # enum llama_split_mode


@dataclass(frozen=True, slots=True)
class Placement:
    """What was chosen: `cpu` and `gpu` are bytes, `gpu` nothing on the CPU alone. `name` is ggml's for the device."""

    device: str
    kind: str
    index: int
    name: str
    n_gpu_layers: int
    n_layers: int
    context: int
    parallel: int
    outputs: int
    cpu: Need
    gpu: Need
    reason: str

    def describe(self) -> str:
        """One line: what was chosen, what it takes, and why."""
        need = self.cpu + self.gpu
        times = f"{self.parallel} x " if self.parallel > 1 else ""
        where = f"{self.n_gpu_layers} of {self.n_layers} layers" if self.n_gpu_layers else "all layers"
        spare = f" ({in_words(need.spare)} of them only to load)" if need.spare else ""
        cache = f"{in_words(need.cache + need.copies)} cache"
        taken = f"{in_words(need.weights)} weights{spare}, {cache}, {in_words(need.compute)} to compute"
        split = f" ({in_words(self.gpu.total)} there)" if self.n_gpu_layers else ""
        return f"{where} on {self.device}, context {times}{self.context}: {taken}{split}; {self.reason}"


def choose(
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
    """Choose device, layers on it and context, and check that all of it fits. Pure: `devices` says what there is.

    device: auto, cpu, metal, cuda, cuda:N, vulkan:N or any other label of `devices`. gpu_layers: negative is all.
    context: tokens of each of the `parallel` sequences; None is the model's own, at most DEFAULT_CONTEXT, and less
    only where that does not fit. outputs: tokens of a batch whose logits are wanted, 0 is all.
    repack, adapters: see `memory.sizes`. Raises InvalidInput for what cannot be, naming the largest context that fits.
    """
    seeing = vision_need(mmproj) if mmproj else Need()
    request = _Request(header, sizes(header, repack, adapters), parallel, outputs, seeing)
    cpu = next((d for d in devices if d.type == "cpu"), None)
    if cpu is None:
        raise InvalidInput("no CPU among the devices; see borealis-gguf devices")
    target = pick(device, devices)
    wanted = _checked_context(request, context)
    asked = _asked_layers(gpu_layers)
    if asked is not None and asked > 0 and not target.is_gpu:
        raise InvalidInput(f"{asked} layers on a GPU, but the device is the CPU; leave gpu_layers out")
    layers = _layer_choices(target, asked, device, request.sizes.n_layers)
    options = [_Option(request, cpu, target if n else cpu, n) for n in layers]
    for option in options:
        if option.fits(wanted):
            return option.placement(wanted, _why(option, options, devices, asked))
    largest = [option.largest() for option in options]
    best = max(range(len(options)), key=lambda i: largest[i])
    if context is not None or not largest[best]:
        raise InvalidInput(options[best if largest[best] else -1].shortage(wanted, largest[best]))
    return options[best].placement(largest[best], f"a context of {wanted} does not fit into what is free")


def pick(device: str, devices: Sequence[Device]) -> Device:
    """The one of `devices` that `device` means; auto: the GPU with most free memory, else the CPU."""
    asked = device.lower()
    gpus = [d for d in devices if d.is_gpu]
    if asked == "auto":
        usable = [d for d in gpus if d.total] or [next(d for d in devices if d.type == "cpu")]
        return max(usable, key=lambda d: (d.type != "igpu", d.free))
    found = next((d for d in devices if asked in (f"{d.kind}:{d.index}", d.label.lower())), None)
    found = found or next((d for d in devices if d.kind == asked), None)
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


def in_words(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


@dataclass(frozen=True, slots=True)
class _Request:
    header: GGUFFile
    sizes: Sizes
    parallel: int
    outputs: int
    vision: Need


@dataclass(frozen=True, slots=True)
class _Option:
    """A number of layers on `target`; on the CPU itself it is 0."""

    request: _Request
    cpu: Device
    target: Device
    n_gpu_layers: int

    def needs(self, context: int) -> tuple[Need, Need]:
        request = self.request
        cpu, gpu = estimate(request.sizes, context, request.parallel, self.n_gpu_layers, request.outputs)
        return (cpu, gpu + request.vision) if self.n_gpu_layers else (cpu + request.vision, gpu)

    def tightest(self, context: int) -> tuple[int, int, Device]:
        """(bytes left over, bytes needed, device) where it is tightest; a device that tells no memory never is."""
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
        low, high = 0, trained // CELLS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(middle * CELLS) else (low, middle - 1)
        return low * CELLS

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
            f"{self.request.header.path}: a context of {times}{context} tokens needs {in_words(needed)} on "
            f"{device.label}, {in_words(device.free)} are free; {advice}"
        )


def _checked_context(request: _Request, context: int | None) -> int:
    trained = request.sizes.trained
    wanted = min(trained, DEFAULT_CONTEXT) if context is None else context
    if request.parallel < 1:
        raise InvalidInput(f"parallel: {request.parallel} is not 1 or more")
    if not 0 < wanted <= trained:
        raise InvalidInput(f"{request.header.path}: a context of {wanted} tokens; this model can have 1 to {trained}")
    return wanted


def _asked_layers(gpu_layers: int | str) -> int | None:
    """None for auto."""
    if gpu_layers == "auto":
        return None
    try:
        return int(gpu_layers)
    except ValueError:
        raise InvalidInput(f"gpu layers: {gpu_layers} is neither a number nor auto") from None


def _layer_choices(target: Device, asked: int | None, device: str, n_layers: int) -> list[int]:
    """Numbers of layers to try, the best first. The CPU alone is a choice only where nobody asked for the GPU."""
    if not target.is_gpu:
        return [0]
    if asked is None:
        return list(range(n_layers, 0 if device.lower() != "auto" else -1, -1))
    return [n_layers if asked < 0 else min(asked, n_layers)]


def _why(option: _Option, options: Sequence[_Option], devices: Sequence[Device], asked: int | None) -> str:
    target = option.target
    free = f"{in_words(target.free)} are free on {target.label}"
    if asked is not None:
        return f"as asked, {free}"
    if option is options[0]:
        none = not any(d.is_gpu for d in devices)
        return f"{free}, and llama.cpp sees no GPU" if none else free
    if option.n_gpu_layers:
        return f"more do not fit, {free}"
    gpu = options[0].target
    return f"nothing fits on {gpu.label}, where {in_words(gpu.free)} are free"
