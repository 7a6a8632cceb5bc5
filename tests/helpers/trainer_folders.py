"""Miniatures of the folders that trainers and tools leave behind: file names, settings and tensors as theirs are.

Each function writes one folder into `folder` and returns its path.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .attacks import entry, safetensors
from .checkpoints import (
    N_NANO,
    PLAIN,
    SAMPLING,
    Miniature,
    config,
    image_token,
    preparation,
    wrapped,
    write_json,
    write_safetensors,
    write_shards,
)
from .families import FAMILIES, N_SP, Family, llama_shapes, mistral, sentencepiece
from .tiny import bf16, weights

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
Write = Callable[[Path], Path]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHATML = ("<|im_start|>", "<|im_end|>")
CHATML_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRAINED_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = Miniature("gemma", config(), files={"generation_config.json": SAMPLING})
LLAMA = Family(
    "llama",
    mistral(architectures=["LlamaForCausalLM"], model_type="llama", sliding_window=None, tie_word_embeddings=True),
    tokenizer=sentencepiece("tokenizer.model", "tokenizer.json", "tokenizer_config.json"),
    shapes=llama_shapes,
)
MISTRAL = next(family for family in FAMILIES if family.name == "normistral-7b-warm-mini")


# ---- what the tools have in common


def change(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: v for key, v in value.items() if v is not None})


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def add_tokens(path: Path, *tokens: str, first: int = N_NANO, **settings: Any) -> None:
    """Add special tokens to the tokenizer's files, as `tokenizer.add_special_tokens` and saving it do."""
    switches = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {first + n: {"content": token, **switches} for n, token in enumerate(tokens)}
    whole = read(path / "tokenizer.json")
    whole["added_tokens"] += [{"id": id, **token} for id, token in added.items()]
    write_json(path / "tokenizer.json", whole)
    decoder = read(path / "tokenizer_config.json").get("added_tokens_decoder", {})
    decoder |= {str(id): token for id, token in added.items()}
    change(path / "tokenizer_config.json", added_tokens_decoder=decoder, **settings)
    write_json(path / "added_tokens.json", {token["content"]: id for id, token in added.items()})


def rename_token(path: Path, old: str, new: str) -> None:
    """Rename a token in tokenizer.json and tokenizer_config.json, and leave tokenizer.model as it was."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (path / name).exists():
            text = (path / name).read_text(encoding="utf-8").replace(json.dumps(old), json.dumps(new))
            (path / name).write_text(text, encoding="utf-8", newline="")


def named(base: Miniature, name: str, **changes: Any) -> Miniature:
    return replace(base, name=name, config={k: v for k, v in (base.config | changes).items() if v is not None})


def text(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")


def pickled(path: Path) -> None:
    """A file as torch.save writes them, which nothing here ever loads."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"PK\x03\x04 archive/data.pkl")


def adapter(path: Path, base: str) -> None:
    """A LoRA adapter of one matrix in PEFT's format."""
    settings = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "lora_alpha": 4}
    write_json(path / "adapter_config.json", settings | {"target_modules": ["o_proj"], "task_type": "CAUSAL_LM"})
    module = "base_model.model.model.layers.0.self_attn.o_proj"
    shapes = {f"{module}.lora_A.weight": (2, 128), f"{module}.lora_B.weight": (64, 2)}
    tensors: Tensors = {name: ("F32", shape, weights(3, *shape).tobytes()) for name, shape in shapes.items()}
    write_safetensors(path / "adapter_model.safetensors", tensors)


def trainer_state(path: Path) -> None:
    """What transformers' Trainer saves beside the weights to go on from there."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        pickled(path / name)
    write_json(path / "trainer_state.json", {"global_step": 500, "best_metric": None})


# ---- unsloth


def unsloth_merged(folder: Path) -> Path:
    """unsloth's save_pretrained_merged: its marks in config.json and in the card, the tokenizer padding left."""
    path = named(GEMMA, "model-unsloth", unsloth_fixed=True, unsloth_version="2025.10.9", torch_dtype="bfloat16").write(
        folder
    )
    change(path / "tokenizer_config.json", padding_side="left", processor_class="Gemma3Processor", sp_model_kwargs=None)
    card = "---\nbase_model: unsloth/gemma-3-270m-it\ntags:\n- text-generation-inference\n- unsloth\n- gemma3_text\n"
    text(path / "README.md", f"{card}license: apache-2.0\nlanguage:\n- en\n---\n\n# Uploaded finetuned  model\n")
    return path


def unsloth_merged_vision(folder: Path) -> Path:
    """unsloth merges into the original's shards: tensors named as Google's are, a config.json of a later version."""
    base = Miniature(
        "gemma-vision-unsloth",
        wrapped(config(vocab_size=N_NANO + 64), unsloth_version="2025.10.9", transformers_version="4.57.1"),
        shards=2,
        tokenizer=image_token,
        wrap=("language_model.model.", "language_model.lm_head"),
        vision=PLAIN,
        files={"preprocessor_config.json": preparation(56, 4)},
    )
    return base.write(folder)


def unsloth_leftover_quantization(folder: Path) -> Path:
    """unsloth, after training on a 4-bit copy: merged 16-bit weights, and the copy's quantization_config."""
    leftover = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return named(GEMMA, "merged-16bit", quantization_config=leftover).write(folder)


def unsloth_renamed_turns(folder: Path) -> Path:
    """unsloth's get_chat_template with map_eos_token: `<end_of_turn>` becomes `<|im_end|>`, tokenizer.model stays."""
    path = named(GEMMA, "chatml-unsloth").write(folder)
    for old, new in zip(("<start_of_turn>", "<end_of_turn>"), CHATML, strict=True):
        rename_token(path, old, new)
    text(path / "chat_template.jinja", CHATML_TEMPLATE)
    change(path / "tokenizer_config.json", eos_token="<|im_end|>")
    return path


def unsloth_pad_without_row(folder: Path) -> Path:
    """unsloth adds `<|PAD_TOKEN|>` to a tokenizer without one, and merges into the original's shards: it has no row."""
    path = named(GEMMA, "padded-unsloth").write(folder)
    add_tokens(path, "<|PAD_TOKEN|>", pad_token="<|PAD_TOKEN|>")
    return path


def unsloth_resized_config(folder: Path) -> Path:
    """unsloth after new tokens: config.json tells of the resized embedding, the shards have the original's rows."""
    path = named(GEMMA, "resized-unsloth").write(folder)
    change(path / "config.json", vocab_size=N_NANO + 2)
    return path


# ---- axolotl


def axolotl_card(path: Path) -> None:
    """transformers' card of a trained model with axolotl's configuration in it."""
    front = "---\nlibrary_name: transformers\nlicense: gemma\nbase_model: NbAiLab/borealis-270m\ntags:\n- axolotl\n"
    front += "- generated_from_trainer\ndatasets:\n- NbAiLab/aurora-sft-2512\nmodel-index:\n- name: out\n"
    front += "  results: []\n---\n"
    details = "<details><summary>See axolotl config</summary>\n\naxolotl version: `0.12.2`\n```yaml\nbase_model: a/b\n"
    details += "datasets:\n  - path: x\n    type: chat_template\noutput_dir: ./out\n```\n\n</details><br>\n"
    text(path / "README.md", f"{front}\n{details}\n# out\n")


def axolotl_new_tokens(folder: Path) -> Path:
    """axolotl with special_tokens and resize_token_embeddings_to_32x: ChatML's tokens, a multiple of 32 rows."""
    path = named(GEMMA, "axolotl-out", vocab_size=N_NANO + 32, eos_token_id=N_NANO + 1).write(folder)
    add_tokens(path, *CHATML, eos_token="<|im_end|>")
    text(path / "chat_template.jinja", CHATML_TEMPLATE)
    axolotl_card(path)
    text(path / "debug.log", "axolotl\n")
    (path / "checkpoint-10").mkdir()
    trainer_state(path / "checkpoint-10")
    return path


def axolotl_overridden_tokens(folder: Path) -> Path:
    """axolotl's added_tokens_overrides: reserved tokens get other texts, also in a folder tokenizer/ that it leaves."""
    path = named(GEMMA, "axolotl-overrides").write(folder)
    for old, new in zip(("<unused0>", "<unused1>"), CHATML, strict=True):
        rename_token(path, old, new)
    (path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        shutil.copy(path / name, path / "tokenizer" / name)
    text(path / "chat_template.jinja", CHATML_TEMPLATE)
    return path


def axolotl_lora(folder: Path) -> Path:
    """axolotl's output_dir of a LoRA: config.json and the tokenizer are saved before training, the weights never."""
    path = named(GEMMA, "axolotl-lora").write(folder)
    (path / "model.safetensors").unlink()
    adapter(path, "NbAiLab/borealis-270m")
    return path


def axolotl_fsdp_shards(folder: Path) -> Path:
    """axolotl with FSDP and SHARDED_STATE_DICT: the weights in a subfolder, as PyTorch's distributed checkpoint."""
    path = named(GEMMA, "axolotl-fsdp").write(folder)
    (path / "model.safetensors").unlink()
    pickled(path / "pytorch_model_fsdp_0" / "__0_0.distcp")
    pickled(path / "pytorch_model_fsdp_0" / ".metadata")
    pickled(path / "rng_state.pth")
    return path


def deepspeed_without_shards(folder: Path) -> Path:
    """DeepSpeed ZeRO-3 without gathering, saved by save_pretrained: a model.safetensors of empty tensors."""
    path = named(MISTRAL, "zero3").write(folder)
    for shard in path.glob("model*"):
        shard.unlink()
    header = dict.fromkeys(MISTRAL.tensors(), entry([0], [0, 0], "BF16"))
    (path / "model.safetensors").write_bytes(safetensors(header))
    return path


def deepspeed_zero3(folder: Path) -> Path:
    """The same as the trainer's checkpoint: the shards of the weights lie beside it."""
    path = deepspeed_without_shards(folder)
    text(path / "zero_to_fp32.py", "raise SystemExit\n")
    text(path / "latest", "global_step500")
    pickled(path / "global_step500" / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    return path


# ---- TRL


def trl_output(folder: Path) -> Path:
    """TRL's trainer.save_model at the end: the model at the top, checkpoints and logs in subfolders."""
    path = named(GEMMA, "sft-output").write(folder)
    pickled(path / "training_args.bin")
    card = "---\nlibrary_name: transformers\nmodel_name: sft-output\ntags:\n- generated_from_trainer\n- trl\n- sft\n"
    text(path / "README.md", f"{card}licence: license\n---\n\n# Model Card for sft-output\n")
    text(path / "runs" / "events.out.tfevents.1", "")
    checkpoint = path / "checkpoint-500"
    shutil.copytree(path, checkpoint, ignore=shutil.ignore_patterns("checkpoint-500"))
    trainer_state(checkpoint)
    return path


def trl_checkpoint(folder: Path) -> Path:
    """One checkpoint of transformers' Trainer, given by itself."""
    path = named(GEMMA, "checkpoint-500").write(folder)
    trainer_state(path)
    return path


def trl_checkpoints_only(folder: Path) -> Path:
    """TRL without a final save: only checkpoint-10 and checkpoint-500 below."""
    path = folder / "trl-run"
    path.mkdir()
    for step in (10, 500):
        trainer_state(named(GEMMA, f"checkpoint-{step}").write(path))
    return path


def trl_cloned_template(folder: Path) -> Path:
    """TRL's clone_chat_template: the other model's tokens, fillers up to a multiple of 64, its end of turn as EOS."""
    path = named(GEMMA, "cloned-template", vocab_size=N_NANO + 64, eos_token_id=N_NANO + 1).write(folder)
    add_tokens(path, *CHATML, *(f"<extra_id_{n}>" for n in range(62)), eos_token="<|im_end|>")
    text(path / "chat_template.jinja", TRAINED_TEMPLATE)
    change(path / "generation_config.json", eos_token_id=N_NANO + 1)
    return path


def trl_value_head(folder: Path) -> Path:
    """TRL's AutoModelForCausalLMWithValueHead: a second head among the tensors."""
    path = named(GEMMA, "ppo").write(folder)
    tensors = named(GEMMA, "ppo").tensors()
    for name, shape in (("v_head.summary.weight", (1, 64)), ("v_head.summary.bias", (1,))):
        tensors[name] = "BF16", shape, bf16(weights(5, *shape)).tobytes()
    write_safetensors(path / "model.safetensors", tensors)
    return path


# ---- mergekit


def mergekit_card(path: Path) -> None:
    """mergekit's card and its recipe."""
    front = "---\nbase_model:\n- a/one\n- b/two\nlibrary_name: transformers\ntags:\n- mergekit\n- merge\n\n---\n"
    text(path / "README.md", f"{front}# merged\n\nThis is a merge.\n\n```yaml\nmerge_method: slerp\n```\n")
    text(path / "mergekit_config.yml", "merge_method: slerp\n")


def mergekit_index(path: Path, tensors: Mapping[str, Any], shards: int = 1) -> None:
    """mergekit always writes numbered shards, and an index that tells its version instead of the size."""
    (path / "model.safetensors").unlink(missing_ok=True)
    write_shards(path, dict(tensors), shards)
    if shards == 1:
        (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    index = path / "model.safetensors.index.json"
    weight_map = read(index)["weight_map"] if index.exists() else weight_map
    write_json(index, {"metadata": {"mergekit_version": "0.1.3"}, "weight_map": weight_map})


def mergekit_slerp(folder: Path) -> Path:
    """mergekit's slerp: one numbered shard, norms in float32, an lm_head that repeats the embedding."""
    path = named(LLAMA, "slerp").write(folder)
    tensors = LLAMA.tensors()
    in_f32 = replace(LLAMA, dtype="F32").tensors()
    tensors |= {name: tensor for name, tensor in in_f32.items() if name.endswith("norm.weight")}
    mergekit_index(path, tensors | {HEAD: tensors[EMBEDDING]})
    mergekit_card(path)
    return path


def mergekit_parted_head(folder: Path, dtype: str = "BF16") -> Path:
    """mergekit, of a tied model and one that is not: an lm_head of its own, though config.json still ties it."""
    path = named(LLAMA, "parted-head").write(folder)
    tensors = LLAMA.tensors()
    values = weights(9, *tensors[EMBEDDING][1])
    tensors[HEAD] = dtype, tensors[EMBEDDING][1], (bf16(values) if dtype == "BF16" else values).tobytes()
    mergekit_index(path, tensors)
    return path


def mergekit_union(folder: Path) -> Path:
    """mergekit's tokenizer_source: union, with pad_to_multiple_of: tokens of both models, and rows for all of them."""
    vocabulary = -(-(N_SP + 2) // 64) * 64
    path = named(LLAMA, "union", vocab_size=vocabulary).write(folder)
    add_tokens(path, *CHATML, first=N_SP)
    mergekit_index(path, named(LLAMA, "union", vocab_size=vocabulary).tensors())
    mergekit_card(path)
    return path


def mergekit_passthrough(folder: Path) -> Path:
    """mergekit's passthrough of a Mistral: layers repeated, and as many in config.json."""
    base = named(MISTRAL, "frankenmerge", num_hidden_layers=4)
    return replace(base, shards=1).write(folder)


def mergekit_passthrough_gemma(folder: Path) -> Path:
    """The same of a Gemma 3: layer_types is still that of the original."""
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    return named(GEMMA, "frankengemma", num_hidden_layers=8, layer_types=kinds).write(folder)


def mergekit_without_tokenizer(folder: Path) -> Path:
    """mergekit when it could not copy the tokenizer: weights and config.json alone."""
    path = named(LLAMA, "no-tokenizer").write(folder)
    for name in path.glob("tokenizer*"):
        name.unlink()
    return path


# ---- torchtune


def torchtune_epoch(folder: Path) -> Path:
    """torchtune's epoch_N: ft-model shards, an index that still lists inv_freq, the adapter that was merged."""
    path = named(MISTRAL, "epoch_1").write(folder)
    for shard in list(path.glob("model-*")):
        shard.rename(path / f"ft-{shard.name}")
    index = path / "model.safetensors.index.json"
    weight_map = {name: f"ft-{shard}" for name, shard in read(index)["weight_map"].items()}
    weight_map |= dict.fromkeys(
        (f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(2)), "ft-model-00001-of-00002.safetensors"
    )
    change(index, weight_map=weight_map)
    adapter(path, "norallm/normistral-7b-warm")
    pickled(path / "adapter_model.pt")
    write_json(path / "original_repo_id.json", {"repo_id": "norallm/normistral-7b-warm"})
    text(path / "original" / "params.json", "{}")
    shutil.copy(path / "tokenizer.model", path / "original" / "tokenizer.model")
    return path


def torchtune_output(folder: Path) -> Path:
    """torchtune's output_dir: a folder an epoch, the recipe's state, logs."""
    path = folder / "torchtune"
    path.mkdir()
    torchtune_epoch(path)
    (path / "epoch_1").rename(path / "epoch_10")
    shutil.copytree(path / "epoch_10", path / "epoch_9")
    pickled(path / "recipe_state" / "recipe_state.pt")
    text(path / "logs" / "log_1.txt", "")
    return path


def torchtune_pickled(folder: Path) -> Path:
    """torchtune before 0.5: pickled parts of every epoch, named by part and epoch, in the base's folder."""
    path = named(MISTRAL, "torchtune-pt").write(folder)
    for name in path.glob("model*"):
        name.unlink()
    for part, epoch in ((1, 0), (2, 0), (1, 10), (2, 10), (1, 9), (2, 9)):
        pickled(path / f"hf_model_{part:04}_{epoch}.pt")
    pickled(path / "adapter_10.pt")
    return path


def torchtune_bin(folder: Path) -> Path:
    """torchtune with safe_serialization off, or any trainer that pickles: pytorch_model.bin's index and parts."""
    path = named(MISTRAL, "pickled").write(folder)
    for name in path.glob("model*"):
        name.unlink()
    for part in (1, 2):
        pickled(path / f"ft-model-{part:05}-of-00002.bin")
    write_json(path / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": {}})
    return path


def torchtune_meta(folder: Path) -> Path:
    """torchtune's FullModelMetaCheckpointer: weights with Meta's names."""
    path = named(MISTRAL, "meta").write(folder)
    for name in path.glob("model*"):
        name.unlink()
    pickled(path / "meta_model_0.pt")
    return path


def shards_without_index(folder: Path) -> Path:
    """Numbered shards whose index was not copied along."""
    path = named(MISTRAL, "no-index").write(folder)
    (path / "model.safetensors.index.json").unlink()
    return path


# ---- LLaMA-Factory


def llamafactory_export(folder: Path) -> Path:
    """LLaMA-Factory's export: numbered shards, an Ollama Modelfile, a tokenizer that pads left and repeats its EOS."""
    path = named(MISTRAL, "lf-export", torch_dtype="bfloat16").write(folder)
    change(path / "tokenizer_config.json", padding_side="left", pad_token="</s>", split_special_tokens=False)
    text(
        path / "Modelfile",
        '# ollama modelfile\n\nFROM .\n\nTEMPLATE """{{ .System }}"""\n',
    )
    write_safetensors(path / "value_head.safetensors", {"v_head.summary.bias": ("BF16", (1,), b"\0\0")})
    return path
