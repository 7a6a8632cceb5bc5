"""Models that several tests use, made once a session by the code under test, and llama.cpp kept quiet."""

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest

from borealis_gguf import api

from .helpers.llama_quantize import keep
from .helpers.paths import NANO, ROOT

# A shell that starts the tests in the background has them ignore Ctrl-C, and all processes they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The repository's root is the package: pytest would import it under the name of its folder, which may be none."""
    for package in {node for item in items for node in item.listchain() if isinstance(node, pytest.Package)}:
        if package.path == ROOT:
            package.setup = lambda: None  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def quiet_llama_cpp() -> Iterator[None]:
    """llama.cpp's log goes to `oracle.LOG`; llama-cpp-python puts its own callback back at every load."""
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the runtime remembers, and what it keeps for the user, stays inside the test run."""
    os.environ["BOREALIS_GGUF_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["BOREALIS_GGUF_DATA"] = str(tmp_path_factory.mktemp("data"))
    yield
    del os.environ["BOREALIS_GGUF_CACHE"], os.environ["BOREALIS_GGUF_DATA"]


@pytest.fixture(scope="session")
def nano() -> Path:
    """The trained Norwegian checkpoint that ships with the repository."""
    return NANO


@pytest.fixture(scope="session")
def nano_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = api.plan_convert(NANO, tmp_path_factory.mktemp("bf16"))
    api.execute([plan])
    return plan.path


@pytest.fixture(scope="session")
def nano_quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    plans = api.plan_quantize(NANO, ["Q8_0", "Q4_K_M"], tmp_path_factory.mktemp("quantized"))
    api.execute(plans)
    return {plan.label: plan.path for plan in plans}


@pytest.fixture(scope="session")
def nano_q8(nano_quantized: dict[str, Path]) -> Path:
    return nano_quantized["Q8_0"]


@pytest.fixture(scope="session")
def nano_q4(nano_quantized: dict[str, Path]) -> Path:
    return nano_quantized["Q4_K_M"]
