"""What trainers and tools leave behind converts as they mean it, or is refused with what it is and what to type."""

import json
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.errors import InvalidInput
from borealis_gguf.quality.report import Report

from ..helpers import trainer_folders as t
from ..helpers.checkpoints import N_NANO
from ..helpers.families import N_SP

CONTROL, UNUSED = 3, 5
EOS, PAD = "tokenizer.ggml.eos_token_id", "tokenizer.ggml.padding_token_id"
GEMMA_TENSORS, LLAMA_TENSORS, MISTRAL_TENSORS = 15, 20, 21
"""How many a base's own file has; a Llama's and a Gemma's output layer is the embedding."""


def converted(path: Path, out: Path) -> tuple[dict[str, Any], list[str]]:
    """The file that the folder becomes, after the quick check: its metadata entries and names of tensors."""
    out.mkdir(exist_ok=True)
    plan, reports = api.plan_convert(path, out), list[Report]()
    api.execute([plan], on_report=reports.append)
    assert all(report.ok for report in reports) and reports
    file = read_gguf(plan.path)
    return {entry.key: entry.value for entry in file.kv}, list(file.tensors)


def tokens(kv: dict[str, Any], *ids: int) -> list[tuple[str, int]]:
    """Text and type of these ids."""
    return [(kv["tokenizer.ggml.tokens"][id], kv["tokenizer.ggml.token_type"][id]) for id in ids]


@pytest.mark.parametrize(
    ("write", "n_tensors", "wanted"),
    [
        (t.unsloth_merged, GEMMA_TENSORS, {EOS: 1, PAD: 0}),
        (t.unsloth_merged_vision, GEMMA_TENSORS, {EOS: 1, "gemma3.block_count": 1}),
        (t.unsloth_leftover_quantization, GEMMA_TENSORS, {EOS: 1}),
        (t.unsloth_renamed_turns, GEMMA_TENSORS, {EOS: 5, "tokenizer.chat_template": t.CHATML_TEMPLATE}),
        (t.axolotl_new_tokens, GEMMA_TENSORS, {EOS: N_NANO + 1, "general.license": "gemma"}),
        (t.axolotl_overridden_tokens, GEMMA_TENSORS, {EOS: 1}),
        (t.trl_output, GEMMA_TENSORS, {"general.name": "sft-output"}),
        (t.trl_checkpoint, GEMMA_TENSORS, {EOS: 1}),
        (t.trl_cloned_template, GEMMA_TENSORS, {EOS: N_NANO + 1, "tokenizer.chat_template": t.TRAINED_TEMPLATE}),
        (t.mergekit_slerp, LLAMA_TENSORS, {"general.file_type": 32, "general.base_model.count": 2}),
        (t.mergekit_union, LLAMA_TENSORS, {"llama.vocab_size": -(-(N_SP + 2) // 64) * 64}),
        (t.mergekit_passthrough, MISTRAL_TENSORS + 18, {"llama.block_count": 4}),
        (t.torchtune_epoch, MISTRAL_TENSORS, {EOS: 2, "llama.block_count": 2}),
        (t.llamafactory_export, MISTRAL_TENSORS, {EOS: 2, PAD: 2}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_it_converts(write: t.Write, n_tensors: int, wanted: dict[str, Any], tmp_path: Path) -> None:
    kv, names = converted(write(tmp_path), tmp_path / "out")
    assert len(names) == n_tensors
    assert {key: kv.get(key) for key in wanted} == wanted


def test_renamed_and_added_tokens_are_control_tokens_with_their_new_text(tmp_path: Path) -> None:
    chatml = [(token, CONTROL) for token in t.CHATML]
    kv, _ = converted(t.unsloth_renamed_turns(tmp_path), tmp_path / "out")
    assert tokens(kv, 4, 5) == chatml
    kv, _ = converted(t.axolotl_overridden_tokens(tmp_path), tmp_path / "out")
    assert tokens(kv, 10, 11) == chatml
    kv, _ = converted(t.axolotl_new_tokens(tmp_path), tmp_path / "out")
    assert tokens(kv, N_NANO, N_NANO + 1, N_NANO + 2) == [*chatml, (f"[PAD{N_NANO + 2}]", UNUSED)]
    kv, _ = converted(t.trl_cloned_template(tmp_path), tmp_path / "out")
    assert tokens(kv, N_NANO + 1, N_NANO + 63) == [chatml[1], ("<extra_id_61>", CONTROL)]
    kv, _ = converted(t.mergekit_union(tmp_path), tmp_path / "out")
    assert tokens(kv, N_SP, N_SP + 1) == chatml


def test_an_output_layer_of_its_own_that_the_configuration_ties_is_refused_before_a_file_is_written(
    tmp_path: Path,
) -> None:
    """transformers 5 keeps it, 4 ignores it. Planning reads no weights, so that it is known when files are written."""
    source = t.mergekit_parted_head(tmp_path)
    expected = "tie_word_embeddings is true, but lm_head.weight is not the embedding; set tie_word_embeddings to false"
    with pytest.raises(InvalidInput, match=expected):
        converted(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf"))
    config = t.read(source / "config.json") | {"tie_word_embeddings": False}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _, names = converted(source, tmp_path / "out2")
    assert "output.weight" in names


def test_a_tied_output_layer_of_another_type_than_the_embedding_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers 5 does; 4 ignores it, so a warning says it, once. Headers tell that it is another matrix."""
    _, names = converted(t.mergekit_parted_head(tmp_path, dtype="F32"), tmp_path / "out")
    assert "output.weight" in names
    assert caplog.text.count("tie_word_embeddings is true, but lm_head.weight is not the embedding") == 1
    caplog.clear()
    converted(t.mergekit_slerp(tmp_path), tmp_path / "out")
    assert "tie_word_embeddings" not in caplog.text


def test_a_merged_adapter_beside_the_weights_is_not_looked_at(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(t.torchtune_epoch(tmp_path))
    assert not [name for name in checkpoint.tensors if "lora" in name or "inv_freq" in name]


@pytest.mark.parametrize(
    ("write", "what", "advice"),
    [
        (t.unsloth_pad_without_row, "'<|PAD_TOKEN|>' (id 4096)", "model.resize_token_embeddings(len(tokenizer))"),
        (t.unsloth_resized_config, "4096 rows, but vocab_size is 4098", "set vocab_size to 4096 in config.json"),
        (
            t.axolotl_lora,
            "a LoRA adapter of NbAiLab/borealis-270m",
            "borealis-gguf convert NbAiLab/borealis-270m --lora",
        ),
        (
            t.axolotl_fsdp_shards,
            "It holds sharded FSDP weights",
            "accelerate merge-weights FOLDER/pytorch_model_fsdp_0 FOLDER",
        ),
        (
            t.deepspeed_zero3,
            "DeepSpeed ZeRO-3 did not gather",
            "python -m deepspeed.utils.zero_to_fp32 FOLDER FOLDER --safe_serialization",
        ),
        (
            t.deepspeed_without_shards,
            "DeepSpeed ZeRO-3 did not gather",
            '"stage3_gather_16bit_weights_on_model_save": true',
        ),
        (
            t.trl_checkpoints_only,
            "checkpoint-500",
            "borealis-gguf convert FOLDER/checkpoint-500",
        ),
        (t.trl_value_head, "TRL's model with a value head", "model.pretrained_model.save_pretrained"),
        (
            t.mergekit_passthrough_gemma,
            "layer_types has 6 entries, but there are 8 layers",
            "must list those of its own",
        ),
        (t.mergekit_without_tokenizer, "neither tokenizer.model nor tokenizer.json is there", "fetch one of them"),
        (t.torchtune_output, "epoch_10", "borealis-gguf convert FOLDER/epoch_10"),
        (t.torchtune_pickled, "hf_model_0002_10.pt", "*_model_*_10.pt"),
        (t.torchtune_bin, "ft-model-00002-of-00002.bin, pickled weights", "M.from_pretrained("),
        (t.torchtune_meta, "meta_model_0.pt, Meta's own format", "fetch the same model in transformers' format"),
        (t.shards_without_index, "It holds model-00001-of-00002.safetensors", "fetch model.safetensors.index.json too"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_is_refused_with_what_to_type(write: t.Write, what: str, advice: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        api.plan_convert(path, tmp_path)
    message = str(caught.value)
    assert what in message
    assert advice.replace("FOLDER", str(path)) in message
    assert "\n" not in message and not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("name", ["rng_state.pth", "optimizer.pt", "training_args.bin", "scheduler.pt"])
def test_what_is_no_model_is_not_taken_for_one(name: str, tmp_path: Path) -> None:
    path = t.named(t.GEMMA, "rest").write(tmp_path)
    (path / "model.safetensors").unlink()
    t.pickled(path / name)
    with pytest.raises(InvalidInput) as caught:
        api.plan_convert(path)
    assert name not in str(caught.value)
