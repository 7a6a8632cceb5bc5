"""What each version of transformers writes when it saves a checkpoint becomes the same GGUF."""

import json
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.convert.describe import describe, describe_vision, has_vision
from borealis_gguf.pipeline.plan import GGUFModel, Tensor

from ..helpers.checkpoints import Miniature, write_json
from ..helpers.config_dialects import BASES, VERSIONS, write
from ..helpers.llama_tokenizer import tokenize
from ..helpers.norwegian_lines import LINES

UNLIKE = (
    "tokenizer.ggml.scores",  # those from tokenizer.json are ranks: what counts are the ids
    "tokenizer.ggml.mask_token_id",  # transformers 5 names Gemma's <mask>, 4 does not
    "tokenizer.ggml.add_eos_token",  # false, or left out, which the runtime takes for false
    "tokenizer.ggml.add_sep_token",
)


def models(path: Path) -> list[GGUFModel]:
    """All files that the checkpoint becomes."""
    checkpoint = open_checkpoint(path)
    text = describe(checkpoint, "bf16", model_name="x")[0]
    return [text, describe_vision(checkpoint, "bf16", model_name="x")[0]] if has_vision(checkpoint) else [text]


def entries(model: GGUFModel) -> dict[str, Any]:
    return {entry.key: (entry.type, entry.value) for entry in model.kv if entry.key not in UNLIKE}


def contents(tensor: Tensor) -> tuple[Any, ...]:
    """The tensor's bytes in the checkpoint, and what is done to them."""
    source, place = tensor.source, tensor.source.slice
    data = place.path.read_bytes()[place.offset : place.offset + place.nbytes]
    return tensor.name, tensor.shape, place.type, source.shift, source.order, source.scale, data


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_every_version_gives_the_same_file(base: Miniature, version: str, tmp_path: Path) -> None:
    original = base.write(tmp_path)
    found = models(write(base, version, tmp_path))
    settings = json.loads((original / "tokenizer_config.json").read_text(encoding="utf-8"))
    # what a file that does not say means to all of these versions, though not to those before
    write_json(original / "tokenizer_config.json", {"clean_up_tokenization_spaces": False} | settings)
    wanted = models(original)
    assert [sorted(map(contents, model.tensors)) for model in found] == [
        sorted(map(contents, model.tensors)) for model in wanted
    ]
    for ours, theirs in zip(map(entries, found), map(entries, wanted), strict=True):
        assert {key: ours.get(key) for key in ours | theirs if ours.get(key) != theirs.get(key)} == {}
    assert tokenize(found[0].kv, LINES) == tokenize(wanted[0].kv, LINES)
    switches = {entry.value for entry in found[0].kv if entry.key in UNLIKE[2:]}
    assert switches <= {False}
