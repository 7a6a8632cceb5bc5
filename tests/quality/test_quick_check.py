"""The quick check before files get their names: it passes good ones and leaves none of a wrong encoder or header."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import BorealisError, Report, api
from borealis_gguf.checkpoint.types import KV
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.errors import Cancelled
from borealis_gguf.pipeline.execute import Progress, execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.plan import Codec, FilePlan
from borealis_gguf.quality.quick_check import QuickCheck
from borealis_gguf.quantize.encoders import ggml

from .test_check import QUICK_TITLES


class EncoderWithoutShift:
    """An encoder that forgets Gemma's + 1: what the pipeline hands it is one too large."""

    @staticmethod
    def encode(rows: np.ndarray, type: T, importance: np.ndarray | None, out: np.ndarray) -> bool:
        if rows.shape[0] == 1 and rows.dtype == np.float32:
            rows = rows - np.float32(1)
        return ggml.encode(rows, type, importance, out)


def test_quick_check_rejects_a_wrong_encoder(tmp_path: Path, nano: Path) -> None:
    plans = api.plan_quantize(nano, ["Q8_0", "Q4_K_M"], tmp_path)
    reports: list[Report] = []
    with (
        QuickCheck(api.CODEC, reports.append) as quick,
        pytest.raises(BorealisError, match=r"^quick check of nano-nb-7m-Q8_0\.gguf failed: .*_norm.* weight is 1"),
    ):
        execute(plans, Codec(EncoderWithoutShift.encode, ggml.decode, ggml.validate), verifier=quick)
    assert list(tmp_path.iterdir()) == []
    assert len(reports) == 1 and not reports[0].ok


def test_quick_check_rejects_a_wrong_header(tmp_path: Path, nano: Path) -> None:
    (plan,) = api.plan_quantize(nano, ["Q8_0"], tmp_path)
    with pytest.raises(BorealisError, match=r"rope.freq_base: key: expected 1000000; found 10000 \(and \d+ more\)"):
        api.execute([with_header(plan, "gemma3.rope.freq_base", 10000.0)])
    assert list(tmp_path.iterdir()) == []


def with_header(plan: FilePlan, key: str, value: float) -> FilePlan:
    """`plan` with another header of the same length, and eos for bos."""
    wrong = {key: value, "tokenizer.ggml.bos_token_id": 1}
    kv = tuple(KV(k.key, k.type, wrong.get(k.key, k.value), k.item_type) for k in plan.model.kv)
    header = lay_out(plan.path, replace(plan.model, kv=kv), [t.type for t in plan.tensors]).header
    return replace(plan, header=header)


def test_files_of_one_pass_are_reported_one_by_one(tmp_path: Path, nano: Path) -> None:
    reports: list[Report] = []
    plans = api.plan_quantize(nano, ["Q8_0", "Q4_K_M", "IQ4_XS"], tmp_path)
    api.execute(plans, on_report=reports.append)
    assert [report.path for report in reports] == [plan.path for plan in plans]
    assert all(report.ok and report.quick for report in reports)
    assert [[section.title for section in report.sections] for report in reports] == [QUICK_TITLES] * 3


def test_stop_during_the_check_ends_within_a_second(
    tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check waits for a tokenizer that never answers, after the last weight is written."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tokenizers.py").write_text("while True: pass", encoding="utf-8")
    monkeypatch.syspath_prepend(str(modules))
    stop, stopped = threading.Event(), []

    def on_progress(progress: Progress) -> None:
        if progress.done == progress.total and not stopped:
            stopped.append(time.monotonic() + 1.0)
            threading.Timer(1.0, stop.set).start()

    (plan,) = api.plan_quantize(nano, ["Q8_0"], tmp_path / "out")
    with pytest.raises(Cancelled):
        api.execute([plan], on_progress=on_progress, stop=stop)
    assert time.monotonic() - stopped[0] < 1.0
    assert not (tmp_path / "out").exists()
