"""The check passes good files, fails others, and reports what it compared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import InvalidInput, Report, api, load
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.checkpoint.types import GGMLQuantizationType as T
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.reader import SourceRows
from borealis_gguf.quality.check import check_file
from borealis_gguf.quality.logits import _compared
from borealis_gguf.quality.quick_check import QuickCheck
from borealis_gguf.quality.report import as_json, as_text
from borealis_gguf.quality.text.sample_conversations import CONVERSATIONS
from borealis_gguf.quality.text.sample_texts import LINES, QUICK_LINES
from borealis_gguf.quality.weights.sampled_rows import SAMPLED_ROWS, sample_rows
from borealis_gguf.runtime.events import Options

from ..helpers.asking import encode, local
from ..helpers.gguf_faults import Weights, flipped_bit, set_value, with_metadata
from ..helpers.tiny import raw_model, weights

TITLES = ["metadata", "tensors", "weights", "cross check", "token ids", "special tokens", "chat template"]
QUICK_TITLES = [title for title in TITLES if title != "cross check"]
"""Of the check before a file gets its name."""


def lines(report: Report, title: str) -> list[str]:
    return [f"{f.status} {f.line}" for section in report.sections if section.title == title for f in section.findings]


def test_a_good_file_passes_every_section(nano: Path, nano_q4: Path) -> None:
    report = api.check(nano_q4, nano)
    assert report.ok, as_text(report)
    assert [section.title for section in report.sections] == TITLES
    assert all(section.checked for section in report.sections)
    assert not report.notes
    assert lines(report, "weights")[0] == "ok F32: 37 tensors, 37 rows: equal"
    assert lines(report, "weights")[2].endswith("each weight the one our encoder gives")
    assert lines(report, "token ids") == [
        f"ok {len(LINES)} texts, {tokens(report)} tokens",
        "ok 4096 tokens have the tokenizer's texts, joined in the same order",
    ]
    assert "ok 5 '<end_of_turn>': ends an answer (generation_config.json, its name)" in lines(report, "special tokens")
    assert f"ok exactly one BOS in {len(CONVERSATIONS) - 2} prompts" in lines(report, "chat template")
    assert as_text(report).count("✗") == 0


def tokens(report: Report) -> int:
    """More than the lines are long in words, fewer than their bytes."""
    count = int(lines(report, "token ids")[0].split(", ")[1].split()[0])
    assert sum(len(line.split()) for line in LINES) < count < sum(len(line.encode()) for line in LINES)
    return count


def test_sample_lines_and_conversations_are_distinct() -> None:
    assert len(set(LINES)) == len(LINES) > 50
    assert len({json.dumps(messages) for messages in CONVERSATIONS.values()}) == len(CONVERSATIONS)


@pytest.mark.parametrize("preset", ["F32", "F16", "Q6_K", "Q5_0", "Q3_K_M", "Q2_K", "Q2_0", "TQ2_0"])
def test_every_preset_passes(tmp_path: Path, nano: Path, preset: str) -> None:
    """The quick check of `execute` raises nothing, the whole one finds nothing."""
    plans = api.plan_quantize(nano, [preset], tmp_path)
    api.execute(plans)
    report = api.check(plans[0].path, nano)
    assert report.ok, as_text(report)


def test_check_with_and_without_the_importance_matrix(tmp_path: Path, nano: Path) -> None:
    """With the matrix, weights must be exact; without, they must be about as near, and one bit goes unseen."""
    matrix = write_matrix(tmp_path / "imatrix.gguf", nano)
    (plan,) = api.plan_quantize(nano, ["Q4_0"], tmp_path / "good.gguf", imatrix=matrix)
    api.execute([plan])
    without = api.check(plan.path, nano, quick=False)
    assert without.ok, as_text(without)
    assert "an importance matrix chose them" in without.notes[0].what
    assert api.check(plan.path, nano, imatrix=matrix).ok
    bad = Weights(plan.path, tmp_path / "bad.gguf")
    flipped_bit(bad)
    report = api.check(bad.path, nano, imatrix=matrix)
    assert [finding.where for finding in report.failures] == ["blk.0.ffn_gate.weight"]


def write_matrix(path: Path, nano: Path) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["nob.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for seed, tensor in enumerate(api.plan_convert(nano).model.tensors):
        if len(tensor.shape) == 2 and "token_embd" not in tensor.name:
            writer.add_tensor(f"{tensor.name}.in_sum2", np.exp(3 * weights(seed, 1, tensor.n_per_row)))
            writer.add_tensor(f"{tensor.name}.counts", np.full((1, 1), 3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_requantizing_from_an_f16_file_passes(tmp_path: Path, nano: Path) -> None:
    """Rounding to float16 in between changes blocks here and there, which is no damage."""
    plans = api.plan_quantize(nano, ["F16"], tmp_path)
    api.execute(plans)
    (second,) = api.plan_quantize(plans[0].path, ["Q4_K_M"], tmp_path)
    api.execute([second])
    straight = api.plan_quantize(nano, ["Q4_K_M"], tmp_path / "straight.gguf")
    api.execute(straight)
    assert second.path.read_bytes()[-(1 << 22) :] != straight[0].path.read_bytes()[-(1 << 22) :]
    report = api.check(second.path, nano)
    assert report.ok, as_text(report)


def test_unusual_weight_distributions_pass(tmp_path: Path) -> None:
    """What the table of typical errors does not foresee is encoded again, and that decides."""
    shapes = {"up.weight": (64, 512), "gate.weight": (64, 512), "token_embd.weight": (32, 512)}
    model = raw_model(tmp_path / "raw", shapes, T.F32)
    values = np.fromfile(tmp_path / "raw", np.float32)
    values[::97] *= 300
    values[np.arange(values.size) % 10 > 1] = 0
    values.tofile(tmp_path / "raw")
    for type in (T.Q4_0, T.Q4_K, T.IQ4_XS, T.IQ3_S, T.Q2_K, T.Q8_0):
        plan = lay_out(tmp_path / f"{type.name}.gguf", model, [type] * 3)
        with QuickCheck(api.CODEC) as quick:
            execute([plan], api.CODEC, verifier=quick)
        report = check_file(read_gguf(plan.path), model, api.CODEC, against="raw")
        assert report.ok, as_text(report)


def test_the_source_may_be_a_gguf(nano_bf16: Path, nano_q4: Path) -> None:
    report = api.check(nano_q4, nano_bf16)
    assert report.ok, as_text(report)
    assert [section.title for section in report.sections] == QUICK_TITLES
    assert "note not compared: a GGUF is the source" in lines(report, "chat template")[-1]


def test_a_missing_tokenizers_library_fails_the_check(
    tmp_path: Path, nano: Path, nano_q8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizers.py").write_text("raise ImportError('none here')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))  # workers import what this process would
    report = api.check(nano_q8, nano, quick=True)
    assert [finding.what.split(":")[0] for finding in report.failures] == ["not compared"]
    assert "tokenizer.json, the process ended (1): ImportError: none here" in report.failures[0].what
    assert f"ok {len(QUICK_LINES)} texts come back from their ids" in lines(report, "token ids")


def test_a_tokenizer_that_never_answers_fails_the_check(
    tmp_path: Path, nano: Path, nano_q8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizers.py").write_text("while True: pass", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("borealis_gguf.quality.check_worker_client.TIME_LIMIT", 3.0)
    report = api.check(nano_q8, nano, quick=True)
    (finding,) = report.failures
    assert finding.what.endswith("tokenizer.json, no answer came within 3 s")
    assert report.seconds < 60


def test_a_checkpoint_with_sentencepiece_alone(tmp_path: Path, nano: Path) -> None:
    checkpoint = Path(shutil.copytree(nano, tmp_path / "nano-nb-7m"))
    (checkpoint / "tokenizer.json").unlink()
    plans = api.plan_quantize(checkpoint, ["Q8_0"], tmp_path)
    api.execute(plans)
    report = api.check(plans[0].path, checkpoint, quick=True)
    assert report.ok, as_text(report)
    assert "not compared: the checkpoint has no tokenizer.json" in report.notes[0].what
    bad = with_metadata(plans[0].path, tmp_path / "bad.gguf", set_value("tokenizer.ggml.scores", (0.0,) * 4096))
    assert not api.check(bad, checkpoint, quick=True).ok


def test_lines_of_a_file(tmp_path: Path, nano: Path, nano_q8: Path) -> None:
    (tmp_path / "text.txt").write_text("Første linje\r\n\nAndre linje 🫐\n", encoding="utf-8")
    report = api.check(nano_q8, nano, text=tmp_path / "text.txt", quick=True)
    assert lines(report, "token ids")[0].startswith(f"ok {len(QUICK_LINES) + 2} texts")
    with pytest.raises(InvalidInput, match=r"none\.txt"):
        api.check(nano_q8, nano, text=tmp_path / "none.txt")


def test_descriptions_may_differ(tmp_path: Path, nano: Path, nano_q8: Path) -> None:
    other = with_metadata(nano_q8, tmp_path / "other.gguf", set_value("general.name", "Et annet navn"))
    report = api.check(other, nano, quick=True)
    assert report.ok, as_text(report)
    assert [note.where for note in report.notes] == ["general.name"]


def test_tensors_too_many_too_few_or_of_another_shape(tmp_path: Path, nano: Path, nano_q8: Path) -> None:
    model = api.plan_convert(nano).model
    first, second, third, *rest = model.tensors
    changed = (replace(first, shape=(4000, 256)), replace(second, name="blk.0.ffn_left.weight"), third, *rest)
    report = check_file(read_gguf(nano_q8), replace(model, tensors=changed), api.CODEC, against="nano", quick=True)
    assert [finding.line for finding in report.failures] == [
        "blk.0.ffn_left.weight: tensor: expected a tensor; found none",
        f"{second.name}: tensor: expected none; found a tensor",
        "token_embd.weight: shape: expected [4000, 256]; found [4096, 256]",
    ]


def test_a_nan_of_the_source_is_a_note(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"token_embd.weight": (32, 512), "output_norm.weight": (512,)}, T.F32)
    values = np.fromfile(tmp_path / "raw", np.float32)
    values[5 * 512 + 3] = np.nan
    values.tofile(tmp_path / "raw")
    plan = lay_out(tmp_path / "x.gguf", model, [T.F16, T.F32])
    execute([plan], api.CODEC, allow_nonfinite=True)
    report = check_file(read_gguf(plan.path), model, api.CODEC, against="raw")
    assert report.ok, as_text(report)
    assert report.notes[0].line == "token_embd.weight: NaN or infinity in row 5, as in the source"


def test_not_a_gguf(tmp_path: Path, nano: Path) -> None:
    (tmp_path / "x.gguf").write_text("hei", encoding="utf-8")
    with pytest.raises(InvalidInput, match="not a GGUF file"):
        api.check(tmp_path / "x.gguf", nano)


def test_sampled_rows_cover_every_part_of_a_tensor() -> None:
    for rows in (1, 5, 8, 9, 64, 1000, 262208):
        picked = sample_rows(rows)
        assert picked == sorted(set(picked))
        assert picked[0] == 0 and picked[-1] == rows - 1
        assert len(picked) == min(rows, SAMPLED_ROWS)
        assert max(np.diff(picked), default=0) <= max(1, rows / 3)


def test_missing_libraries_for_logits_are_named(
    nano: Path, nano_bf16: Path, nano_q8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(InvalidInput, match=r"comparing logits needs torch: pip install torch$"):
        api.check(nano_q8, nano, quick=True, logits=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(InvalidInput, match="a GGUF; logits are compared with a checkpoint"):
        api.check(nano_q8, nano_bf16, quick=True, logits=True)


def test_logits_over_several_batches_equal_those_of_decoding(nano_q8: Path) -> None:
    with load(nano_q8, context=1024, sampling={"temperature": 0}) as model:
        ids, engine = encode(model, "Skriv om Norge. " * 100), local(model).engine
        assert len(ids) > 512
        rows = engine.logits(ids, [0, 511, 512, len(ids) - 1])
        assert rows.shape == (4, 4096)
        assert np.isfinite(rows).all()
        engine.truncate(0, 0)  # the answer's thread knows nothing of what was computed beside it
        said = model.complete(ids, Options(max_tokens=1, logprobs=1))
        assert next(said).logprobs[0].id == rows[3].argmax()  # type: ignore[union-attr]
        again = engine.logits(ids[:5], [0, 4])
        assert again[0].argmax() == rows[0].argmax()


def test_divergence_of_logits() -> None:
    """Equal rows, and a shift of all logits, are 0; half of the certainty lost is log 2; padding does not count."""
    rows = np.log(np.array([[0.5, 0.25, 0.25], [0.98, 0.01, 0.01]], np.float32))
    assert _compared([1, 2], rows, rows + np.float32(3)) == {
        "tokens": 2,
        "divergence": pytest.approx(0, abs=1e-7),
        "same": 1,
    }
    sure, torn = np.array([[30.0, 0.0]], np.float32), np.array([[7.0, 7.0, -50.0]], np.float32)
    assert _compared([1], sure, torn)["divergence"] == pytest.approx(np.log(2), rel=1e-4)


def test_source_rows_equal_those_of_the_executor(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "raw", {"a.weight": (300, 256), "a_norm.weight": (256,)}, T.BF16, shift=1.0)
    matrix = (weights(0, 300, 256).view(np.uint32) & 0xFFFF0000).view(np.float32)
    norm = (weights(1, 256).view(np.uint32) & 0xFFFF0000).view(np.float32) + np.float32(1)
    with SourceRows(api.CODEC) as reader:
        assert np.array_equal(reader.read(model.tensors[0], 17, 40), matrix[17:57])
        assert np.array_equal(reader.read(model.tensors[1], 0, 1)[0], norm)
        assert np.array_equal(reader.read_each(model.tensors[0], [299, 0, 7]), matrix[[299, 0, 7]])
        assert np.array_equal(reader.read_each(model.tensors[1], [0])[0], norm)


def test_report_as_json(nano: Path, nano_q8: Path) -> None:
    report = api.check(nano_q8, nano, quick=True)
    content = json.loads(as_json(report))
    assert content["ok"] is True
    assert content["quick"] is True
    assert [section["title"] for section in content["sections"]] == TITLES
    assert set(content["sections"][0]["findings"][0]) == {"status", "what", "where", "expected", "found"}
    assert read_gguf(Path(content["path"])).value("general.architecture") == "gemma3"
