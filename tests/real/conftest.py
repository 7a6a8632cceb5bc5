"""The real 270m, rebuilt once a session. Where real models are not fetched, `test_material` alone is collected."""

from pathlib import Path

import pytest

from borealis_gguf import api

from .checkpoints import write_real_270m
from .material import wanted

collect_ignore_glob = [] if wanted() else ["test_[!m]*.py"]


@pytest.fixture(scope="session")
def gemma_270m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 checkpoint folder."""
    return write_real_270m(tmp_path_factory.mktemp("real") / "gemma-3-270m-it")


@pytest.fixture(scope="session")
def gemma_270m_q8(gemma_270m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plans = api.plan_quantize(gemma_270m, ["Q8_0"], tmp_path_factory.mktemp("real-q8"))
    api.execute(plans)
    return plans[0].path
