"""Placement of models on devices, which are only numbers for `choose_placement`.

There is no GPU where these tests are written: that llama.cpp's CUDA, Metal and Vulkan then do as they are told is seen
nowhere here. What is handed to llama.cpp is, with the CPU for a device.
"""

import ctypes
from dataclasses import replace
from pathlib import Path

import llama_cpp as llama
import pytest

from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.gguf_header import GGUFFile
from borealis_gguf.checkpoint.types import GGMLQuantizationType, row_nbytes
from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.runtime.fitting.memory_estimate import MemoryNeed, estimate, sizes, vision_need
from borealis_gguf.runtime.fitting.placement import GPU_MARGIN, HOST_MARGIN, choose_placement, model_params, pick_device
from borealis_gguf.runtime.llama.devices import Device, device_array

from ..helpers.llama_allocations import allocations
from ..helpers.sparse_models import GEMMA_4B, write_mmproj, write_sparse

GB = 10**9


def cpu(free: float) -> Device:
    return Device("cpu", 0, "CPU", "a CPU", 64 * GB, int(free * GB), type="cpu")


def cuda(free: float, index: int = 0) -> Device:
    return Device("cuda", index, f"CUDA{index}", "a card", 24 * GB, int(free * GB))


def metal(free: float) -> Device:
    return Device("metal", 0, "MTL0", "Apple M2", 12 * GB, int(free * GB), unified=True)


def vulkan(free: float) -> Device:
    return Device("vulkan", 0, "Vulkan0", "an integrated GPU", 8 * GB, int(free * GB), type="igpu", unified=True)


BLAS = Device("blas", 0, "BLAS", "OpenBLAS", 0, 0, type="accel")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    """Borealis 4b's shape in Q4_0: 2.2 GB of weights, 35 layers."""
    path = tmp_path_factory.mktemp("placement") / "borealis-4b-Q4_0.gguf"
    return read_gguf(write_sparse(path, GEMMA_4B, GGMLQuantizationType.Q4_0))


def test_without_a_gpu(model: GGUFFile) -> None:
    chosen = choose_placement(model, devices=[cpu(16), BLAS])
    assert (chosen.device, chosen.n_gpu_layers, chosen.context, chosen.gpu) == ("CPU", 0, 8192, MemoryNeed())
    assert chosen.cpu == estimate(sizes(model), 8192)[0]
    assert chosen.describe() == (
        "all layers on CPU, context 8192: 2.18 GB weights, 618.7 MB cache, 559.0 MB to compute; "
        "16.00 GB are free on CPU, and llama.cpp sees no GPU"
    )


def test_all_layers_on_a_gpu(model: GGUFFile) -> None:
    chosen = choose_placement(model, devices=[cpu(16), cuda(20)], parallel=4, outputs=4)
    assert (chosen.device, chosen.name, chosen.n_gpu_layers, chosen.n_layers) == ("CUDA:0", "CUDA0", 35, 35)
    assert (chosen.cpu, chosen.gpu) == estimate(sizes(model), 8192, 4, 35, 4)
    assert chosen.cpu.weights == sizes(model).input
    assert "35 of 35 layers on CUDA:0, context 4 x 8192" in chosen.describe()
    assert "\n" not in chosen.describe()


def test_as_many_layers_as_fit(model: GGUFFile) -> None:
    """One more layer would not fit."""
    found = sizes(model)
    for free in (2.0, 2.5, 3.0, 3.5, 4.0):
        chosen = choose_placement(model, devices=[cpu(16), cuda(free)])
        n = chosen.n_gpu_layers
        assert estimate(found, 8192, gpu_layers=n)[1].total + GPU_MARGIN <= free * GB or not n
        if n < 35:
            assert estimate(found, 8192, gpu_layers=n + 1)[1].total + GPU_MARGIN > free * GB
    described = choose_placement(model, devices=[cpu(16), cuda(4)]).describe()
    assert described.endswith("more do not fit, 4.00 GB are free on CUDA:0")
    nothing = choose_placement(model, devices=[cpu(16), cuda(1.2)])
    assert (nothing.device, nothing.n_gpu_layers) == ("CPU", 0)
    assert nothing.reason == "nothing fits on CUDA:0, where 1.20 GB are free"


def test_repacked_weights_must_fit_once(model: GGUFFile) -> None:
    """The description counts them in full; the mapped ones can be reclaimed."""

    def repack(type: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
        return row_nbytes(type, shape[-1]) * shape[0] if type == GGMLQuantizationType.Q4_0 and len(shape) == 2 else 0

    plain, twice = (choose_placement(model, devices=[cpu(16)], repack=each) for each in (None, repack))
    embedding, blocks = sizes(model).tied, sum(sizes(model, repack).packed)
    assert twice.cpu.weights == plain.cpu.weights + blocks + embedding
    assert blocks <= twice.cpu.spare < blocks + 10**6
    assert "4.37 GB weights (1.80 GB of them only to load), 618.7 MB cache" in twice.describe()
    need = plain.cpu.total + embedding + HOST_MARGIN
    assert choose_placement(model, context=8192, devices=[replace(cpu(16), free=need)], repack=repack).context == 8192
    with pytest.raises(InvalidInput, match="the largest context that fits is"):
        choose_placement(model, context=8192, devices=[replace(cpu(16), free=need - 2 * 10**6)], repack=repack)


def test_exactly_what_fits(model: GGUFFile) -> None:
    need = estimate(sizes(model), 4096)[0].total + HOST_MARGIN
    enough = replace(cpu(16), free=need)
    assert choose_placement(model, context=4096, devices=[enough]).context == 4096
    with pytest.raises(InvalidInput, match="the largest context that fits is 3840"):
        choose_placement(model, context=4096, devices=[replace(enough, free=need - 1)])


def test_what_cannot_be_names_the_largest_context_that_fits(model: GGUFFile) -> None:
    devices = [cpu(5)]
    with pytest.raises(InvalidInput) as caught:
        choose_placement(model, context=131072, devices=devices)
    told, _, largest = str(caught.value).rpartition(" ")
    what = "a context of 131072 tokens needs 6.15 GB on CPU, 5.00 GB are free; the largest context that fits is"
    assert told == f"{model.path}: {what}"
    largest = int(largest)
    assert 65000 < largest < 80000 and not largest % 256
    assert choose_placement(model, context=largest, devices=devices).context == largest
    with pytest.raises(InvalidInput):
        choose_placement(model, context=largest + 1, devices=devices)


def test_a_context_nobody_asked_for_shrinks_and_says_so(model: GGUFFile) -> None:
    free = (estimate(sizes(model), 3072)[0].total + HOST_MARGIN) / GB
    chosen = choose_placement(model, devices=[cpu(free)])
    assert chosen.context == 3072
    assert chosen.describe().endswith("a context of 8192 does not fit into what is free")


def test_a_model_that_never_fits(model: GGUFFile) -> None:
    with pytest.raises(InvalidInput, match=r"no context fits: use a smaller model or preset$"):
        choose_placement(model, devices=[cpu(1), cuda(1)])
    with pytest.raises(InvalidInput, match=r"on CUDA:0, 2\.00 GB are free; no context .* or fewer layers"):
        choose_placement(model, gpu_layers=35, devices=[cpu(16), cuda(2)])
    with pytest.raises(InvalidInput, match="on CPU, 0 B are free"):
        choose_placement(model, devices=[cpu(0), cuda(20)])


def test_a_number_of_layers_is_kept(model: GGUFFile) -> None:
    devices = [cpu(16), cuda(20)]
    assert choose_placement(model, gpu_layers=12, devices=devices).n_gpu_layers == 12
    assert choose_placement(model, gpu_layers="12", devices=devices).n_gpu_layers == 12
    assert choose_placement(model, gpu_layers=-1, devices=devices).n_gpu_layers == 35
    assert choose_placement(model, gpu_layers=99, devices=devices).n_gpu_layers == 35
    assert choose_placement(model, gpu_layers=0, devices=devices).device == "CPU"
    assert choose_placement(model, gpu_layers=-1, devices=[cpu(16)]).device == "CPU"
    with pytest.raises(InvalidInput, match="12 layers on a GPU, but the device is the CPU"):
        choose_placement(model, gpu_layers=12, device="cpu", devices=devices)


def test_the_device_that_was_asked_for(model: GGUFFile) -> None:
    devices = [cpu(16), cuda(10), cuda(20, 1), vulkan(6), BLAS]
    wanted = {"auto": "CUDA1", "cuda": "CUDA0", "cuda:1": "CUDA1", "CUDA:0": "CUDA0", "vulkan": "Vulkan0", "CPU": "CPU"}
    for device, name in wanted.items():
        assert pick_device(device, devices).name == name
        assert choose_placement(model, device=device, devices=devices).name == name
    for device in ("cuda:2", "metal", "blas", "", "cuda0", "gpu"):
        with pytest.raises(InvalidInput, match=r"llama\.cpp has none here, only cpu, cuda:0, cuda:1, vulkan:0; see"):
            pick_device(device, devices)
    with pytest.raises(InvalidInput, match=r"no context fits: use a smaller model or preset, or the CPU$"):
        choose_placement(model, device="cuda", devices=[cpu(16), cuda(1)])  # and not the CPU behind one's back


def test_an_integrated_gpu_is_second_choice() -> None:
    assert pick_device("auto", [cpu(16), vulkan(12), cuda(4)]).name == "CUDA0"
    assert pick_device("auto", [cpu(16), vulkan(12)]).name == "Vulkan0"


def test_memory_that_is_shared_is_counted_once(model: GGUFFile) -> None:
    """An Apple GPU shares the host's memory, so both limits count."""
    assert choose_placement(model, devices=[cpu(8), metal(8)]).n_gpu_layers == 35
    need = sum(part.total for part in estimate(sizes(model), 8192, gpu_layers=35)) + HOST_MARGIN
    assert choose_placement(model, devices=[replace(cpu(8), free=need), metal(8)]).n_gpu_layers == 35
    assert choose_placement(model, devices=[replace(cpu(8), free=need - 1), metal(8)]).n_gpu_layers < 35


def test_a_device_of_unknown_memory(model: GGUFFile) -> None:
    silent = replace(cuda(0), total=0)
    assert choose_placement(model, devices=[cpu(16), silent]).device == "CPU"
    assert choose_placement(model, device="cuda", devices=[cpu(16), silent]).n_gpu_layers == 35


def test_the_vision_tower_is_placed_with_the_model(model: GGUFFile, tmp_path: Path) -> None:
    mmproj = read_gguf(write_mmproj(tmp_path / "mmproj.gguf", 896, layers=2))
    seeing = vision_need(mmproj)
    alone, both = (choose_placement(model, devices=[cpu(16)], mmproj=side) for side in (None, mmproj))
    assert both.cpu == alone.cpu + seeing
    alone, both = (choose_placement(model, devices=[cpu(16), cuda(20)], mmproj=side) for side in (None, mmproj))
    assert (both.cpu, both.gpu) == (alone.cpu, alone.gpu + seeing)


def test_requests_that_make_no_sense(model: GGUFFile) -> None:
    with pytest.raises(InvalidInput, match="a context of 131073 tokens; this model can have 1 to 131072"):
        choose_placement(model, context=131073, devices=[cpu(16)])
    with pytest.raises(InvalidInput, match="a context of 0 tokens"):
        choose_placement(model, context=0, devices=[cpu(16)])
    with pytest.raises(InvalidInput, match="gpu layers: all is neither a number nor auto"):
        choose_placement(model, gpu_layers="all", devices=[cpu(16)])
    with pytest.raises(InvalidInput, match="parallel: 0 is not 1 or more"):
        choose_placement(model, parallel=0, devices=[cpu(16)])
    with pytest.raises(InvalidInput, match="no CPU"):
        choose_placement(model, devices=[])


def test_fields_of_llama_model_params(model: GGUFFile) -> None:
    on_gpu = choose_placement(model, device="cuda:1", devices=[cpu(16), cuda(20), cuda(20, 1)])
    with pytest.raises(BorealisError, match=r"CUDA1: llama\.cpp has no such device"):
        model_params(on_gpu)
    fields = model_params(replace(on_gpu, name="CPU"))  # the one device that is everywhere
    pointers = ctypes.cast(fields["devices"], ctypes.POINTER(ctypes.c_void_p))
    assert pointers[0] and not pointers[1]
    assert (fields["n_gpu_layers"], fields["main_gpu"]) == (35, 0)
    assert fields["split_mode"] == llama.LLAMA_SPLIT_MODE_NONE
    on_cpu = model_params(choose_placement(model, devices=[cpu(16)]))
    assert not ctypes.cast(on_cpu["devices"], ctypes.POINTER(ctypes.c_void_p))[0]
    assert (on_cpu["n_gpu_layers"], on_cpu["split_mode"]) == (0, llama.LLAMA_SPLIT_MODE_LAYER)
    assert device_array(("CPU",)) == device_array(("CPU",)) != device_array(())


def test_llama_cpp_accepts_the_placement(nano_q8: Path) -> None:
    chosen = choose_placement(read_gguf(nano_q8), devices=[cpu(16)])
    real = allocations(nano_q8, chosen.context, 1, **model_params(chosen))
    assert abs(chosen.cpu.total - sum(real.values())) < 0.1 * chosen.cpu.total
