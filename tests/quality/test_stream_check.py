"""Streamed files pass the quick check too, and nothing is fetched for it."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from io import RawIOBase
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import BorealisError, Report, api
from borealis_gguf.checkpoint.hub.remote import open_slice
from borealis_gguf.checkpoint.hub.stream import open_stream
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.checkpoint.types import Remote, Slice
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import Codec, GGUFModel, RowMap, Tensor
from borealis_gguf.quality.quick_check import QuickCheck
from borealis_gguf.quality.report import as_text
from borealis_gguf.quantize.encoders import ggml

from ..checkpoint.test_hub import TOKEN
from ..conftest import NANO
from ..helpers.hub_server import Hub, serve
from ..helpers.lora_adapters import FOR_NANO
from ..helpers.tiny import raw_model
from .test_check import QUICK_TITLES, lines
from .test_quick_check import EncoderWithoutShift, with_header

REPO = "NbAiLab/nano-nb-7m"
FILES = {file.name: file.read_bytes() for file in NANO.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve(Hub({REPO: dict(FILES)}, cdn=True)) as server:
        monkeypatch.setattr("borealis_gguf.checkpoint.source.open_stream", partial(open_stream, endpoint=server.url))
        yield server


def sections(reports: list[Report]) -> list[tuple[object, ...]]:
    """All but the metadata, which for a Hub id tells where the model is from."""
    return [tuple(s for s in report.sections if s.title != "metadata") for report in reports]


def test_streamed_report_equals_a_folders_without_more_requests(hub: Hub, tmp_path: Path) -> None:
    near: list[Report] = []
    far: list[Report] = []
    presets = ["Q8_0", "Q4_K_M"]
    api.execute(api.plan_quantize(NANO, presets, tmp_path), on_report=near.append)
    plans = api.plan_quantize(REPO, presets, tmp_path, stream=True)
    hub.ranges.clear()
    api.execute(plans, on_report=far.append)
    requests = sorted(hub.ranges)
    assert sections(far) == sections(near)
    assert [[section.title for section in report.sections] for report in far] == [QUICK_TITLES] * 2
    assert lines(far[0], "weights")[1].startswith("ok Q8_0: 43 tensors, 344 rows: relative error 0.00")
    plans = api.plan_quantize(REPO, presets, tmp_path, stream=True)
    hub.ranges.clear()
    api.execute(plans, check=False)
    assert sorted(hub.ranges) == requests


def test_streamed_adapters_and_conversion_pass(hub: Hub, tmp_path: Path) -> None:
    reports: list[Report] = []
    lora = FOR_NANO.write(tmp_path)
    api.execute([api.plan_convert(REPO, tmp_path, stream=True)], on_report=reports.append)
    api.execute(
        api.plan_quantize(REPO, ["Q8_0"], tmp_path, stream=True, loras=[(lora, 0.25)]), on_report=reports.append
    )
    assert [report.ok for report in reports] == [True, True]
    assert lines(reports[0], "weights")[1].endswith("rows: equal")


def test_quick_check_rejects_a_wrong_encoder_or_header_of_a_stream(hub: Hub, tmp_path: Path) -> None:
    (plan,) = api.plan_quantize(REPO, ["Q8_0"], tmp_path, stream=True)
    codec = Codec(EncoderWithoutShift.encode, ggml.decode, ggml.validate)
    with (
        QuickCheck(api.CODEC, None, open_slice) as quick,
        pytest.raises(BorealisError, match=r"^quick check of nano-nb-7m-Q8_0\.gguf failed: .*_norm.*weights"),
    ):
        execute([plan], codec, verifier=quick, open_slice=quick.open_slice)
    with pytest.raises(BorealisError, match=r"rope.freq_base: key: expected 1000000; found 10000"):
        api.execute([with_header(plan, "gemma3.rope.freq_base", 10000.0)])
    assert list(tmp_path.iterdir()) == []


def test_streamed_tokenizer_files_live_as_long_as_the_plan(hub: Hub, tmp_path: Path) -> None:
    (plan,) = api.plan_quantize(REPO, ["Q8_0"], tmp_path, stream=True)
    checkpoint = plan.model.checkpoint
    assert checkpoint and (checkpoint.path / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]
    folder = checkpoint.path
    del plan, checkpoint
    assert not folder.exists()


@pytest.mark.parametrize("order", [None, RowMap((8, 2, 16), (0, 2, 1)), RowMap((4, 3, 20), (1, 0, 2))])
@pytest.mark.parametrize("jobs", [1, 3])
def test_kept_rows_equal_the_source(tmp_path: Path, order: RowMap | None, jobs: int) -> None:
    """Also where rows are reordered, and where one request brings the rows of several."""
    rows = 256 if order is None else int(np.prod(order.shape))
    model = raw_model(tmp_path / "raw", {"a.weight": (rows, 512), "b_norm.weight": (512,)}, T.BF16)
    far = Remote("org/name", "org/name@0000000/raw", "https://hub.invalid/raw", 1 << 20, "etag")
    away = Path("org/name@0000000/raw")

    def moved(tensor: Tensor) -> Tensor:
        there = replace(tensor.source.slice, path=away, remote=far)
        ordered = order if len(tensor.shape) > 1 else None
        return replace(tensor, source=replace(tensor.source, slice=there, order=ordered))

    def fetch(slice: Slice, stop: threading.Event) -> RawIOBase:
        return (tmp_path / "raw").open("rb", buffering=0)

    plan = lay_out(tmp_path / "x.gguf", GGUFModel(model.kv, tuple(map(moved, model.tensors))), [T.Q4_K, T.F32])
    reports: list[Report] = []
    with QuickCheck(api.CODEC, reports.append, fetch) as quick:
        execute([plan], api.CODEC, jobs=jobs, verifier=quick, open_slice=quick.open_slice)
        shutil.move(tmp_path / "raw", tmp_path / "gone")
    weights = lines(reports[0], "weights")
    assert reports[0].ok or "general.type" in as_text(reports[0]), as_text(reports[0])
    assert weights[0] == "ok F32: 1 tensor, 1 rows: equal" and weights[1].startswith("ok Q4_K: 1 tensor, 8 rows")
