"""What there is to compute on, and how much memory is free."""

import json
import os
import sys
from pathlib import Path

import llama_cpp
import psutil
import pytest

from borealis_gguf.runtime.fitting import host_memory
from borealis_gguf.runtime.fitting.host_memory import HostMemory, within_cgroups
from borealis_gguf.runtime.llama.devices import devices

from ..cli.test_cli import run

GIB = 1 << 30


def test_the_cpu_comes_first() -> None:
    found = devices()
    first = found[0]
    assert (first.kind, first.type, first.label, first.is_gpu) == ("cpu", "cpu", "CPU", False)
    assert first.description
    assert 0 < first.free <= first.total
    assert len({device.label for device in found}) == len({device.name for device in found}) == len(found)
    assert any(device.is_gpu for device in found) == llama_cpp.llama_supports_gpu_offload()


def test_features_are_those_llama_cpp_reports() -> None:
    told = llama_cpp.llama_print_system_info().decode()
    assert devices()[0].features
    for feature in devices()[0].features:
        name, _, value = feature.partition("=")
        assert f"{name} = {value or 1} " in told


def test_the_command() -> None:
    done = run("devices")
    assert done.returncode == 0
    head, first, *_ = done.stdout.splitlines()
    assert head.split() == ["Device", "Memory", "Free", "What", "it", "is"]
    assert first.startswith("CPU ")
    assert f"CPU: {' '.join(devices()[0].features)}" in done.stdout
    assert ("sees no GPU here" in done.stderr) != llama_cpp.llama_supports_gpu_offload()


def test_the_command_for_machines() -> None:
    done = run("devices", "--json")
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    assert [row["label"] for row in rows] == [device.label for device in devices()]
    assert rows[0]["features"] == list(devices()[0].features)
    assert rows[0]["total"] == devices()[0].total


@pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's own counters")
def test_no_more_than_there_is() -> None:
    found = host_memory.host_memory()
    assert found is not None
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found.free <= found.total <= pages


def files(root: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def limited(root: Path, membership: str, limits: dict[str, str]) -> HostMemory:
    """32 GiB of memory, half of them free, within the cgroups of `root`."""
    files(root, {"membership": membership, **limits})
    return within_cgroups(HostMemory(32 * GIB, 16 * GIB), root / "membership", root / "cgroup")


def test_no_cgroup_has_a_limit(tmp_path: Path) -> None:
    assert limited(tmp_path, "0::/\n", {}) == HostMemory(32 * GIB, 16 * GIB)


def test_a_system_that_does_not_report_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError("no /proc")

    monkeypatch.setattr(psutil, "virtual_memory", fails)
    assert host_memory.host_memory() is None


def test_a_cgroup_has_the_last_word(tmp_path: Path) -> None:
    """Cached files, which the kernel would drop, are not counted; a parent's limit is."""
    limits = {
        "cgroup/app/memory.max": str(8 * GIB),
        "cgroup/app/memory.current": str(7 * GIB),
        "cgroup/app/memory.stat": f"anon {GIB}\nactive_file {2 * GIB}\ninactive_file {3 * GIB}\n",
        "cgroup/app/inner/memory.max": "max\n",
        "cgroup/app/inner/memory.current": "1\n",
    }
    assert limited(tmp_path, "0::/app/inner\n", limits) == HostMemory(8 * GIB, 6 * GIB)


def test_the_first_version_of_cgroups(tmp_path: Path) -> None:
    limits = {
        "cgroup/memory/memory.limit_in_bytes": str(4 * GIB),
        "cgroup/memory/memory.usage_in_bytes": str(3 * GIB),
        "cgroup/memory/memory.stat": f"total_active_file {GIB}\ntotal_inactive_file 0\n",
    }
    # As in a container: the path is the host's, and not to be found here.
    membership = "5:cpu:/x\n4:memory:/docker/0123\n0::/\n"
    assert limited(tmp_path, membership, limits) == HostMemory(4 * GIB, 2 * GIB)


def test_a_limit_that_is_none(tmp_path: Path) -> None:
    limits = {
        "cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "cgroup/memory/memory.usage_in_bytes": "12345",
    }
    assert limited(tmp_path, "4:memory:/\n", limits) == HostMemory(32 * GIB, 16 * GIB)
