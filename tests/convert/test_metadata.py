"""The general keys: names taken apart, model cards, sampling."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from borealis_gguf.checkpoint.folder import Checkpoint
from borealis_gguf.checkpoint.types import KV, SCALARS, GGMLQuantizationType, Slice
from borealis_gguf.convert.metadata.general import general_kv, metadata_kv
from borealis_gguf.errors import InvalidInput
from borealis_gguf.pipeline.plan import Tensor, TensorSource
from borealis_gguf.runtime.prompting.sampling_settings import sampling_from_metadata
from borealis_gguf.sampling_ranges import KEYS, RANGES

HASH = "0123456789abcdef0123456789abcdef01234567"


def general(
    folder: Path,
    *,
    weights: int = 4_000_000_000,
    config: dict[str, Any] | None = None,
    repo_id: str | None = None,
    model_name: str | None = None,
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    source = TensorSource(Slice(folder / "x", 0, GGMLQuantizationType.BF16, (weights, 1)))
    checkpoint = Checkpoint(folder, repo_id, config or {}, {})
    entries = metadata_kv(checkpoint, (Tensor("x", source, (weights, 1)),), model_name=model_name)
    return {kv.key.removeprefix("general."): kv.value for kv in entries}


def card(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{text}\n---\n# Title\n", encoding="utf-8", newline="")
    return folder


def test_the_folder_names_the_model(tmp_path: Path) -> None:
    assert general(tmp_path / "borealis-4b-instruct-v2") == {
        "name": "Borealis 4b Instruct v2",
        "version": "v2",
        "finetune": "instruct",
        "basename": "borealis",
        "size_label": "4B",
    }


def test_a_size_that_is_no_size_and_a_name_without_parts(tmp_path: Path) -> None:
    assert general(tmp_path / "borealis-270m")["size_label"] == "4.0B"
    assert general(tmp_path / "blåbær", weights=268_098_176) == {"name": "Blåbær", "size_label": "268M"}


def test_a_folder_of_the_hubs_cache_is_called_as_its_repository(tmp_path: Path) -> None:
    """Purposeful difference: llama.cpp calls the model by the hash."""
    found = general(tmp_path / HASH, repo_id="NbAiLab/borealis-4b")
    assert (found["name"], found["organization"], found["size_label"]) == ("Borealis 4b", "NbAiLab", "4B")
    assert general(tmp_path / "borealis-4b", repo_id="x/y")["name"] == "Borealis 4b"


def test_the_configuration_comes_before_the_folder_and_the_command_line_before_all(tmp_path: Path) -> None:
    found = general(tmp_path / "run-17", config={"_name_or_path": "NbAiLab/borealis-4b-base"})
    assert (found["name"], found["organization"], found["finetune"]) == ("Borealis 4b Base", "NbAiLab", "base")
    assert general(tmp_path / "borealis", config={"_name_or_path": "/home/kari/run/17"})["name"] == "Borealis"
    assert general(tmp_path / "borealis", config={"_name_or_path": ""})["name"] == "Borealis"
    folder = card(tmp_path / "borealis-4b", "model_name: Borealis på kort")
    assert general(folder)["name"] == "Borealis på kort"
    assert general(folder, model_name="Borealis på linja")["name"] == "Borealis på linja"


def test_norwegian_is_not_false_and_versions_are_not_numbers(tmp_path: Path) -> None:
    """Purposeful difference: to llama.cpp `language: no` says nothing, and `version: 1.0` ends it with an error."""
    found = general(card(tmp_path / "a", "language: no\nversion: 1.0\ntags: [no, 7b]\nlicense: [mit, gemma]"))
    assert (found["languages"], found["version"], found["tags"]) == (("no",), "1.0", ("no", "7b"))
    assert found["license"] == "mit,gemma"
    found = general(card(tmp_path / "b", "language: [en, no]\nlicense:\nlicense_name: ~\ntags: []"))
    assert found["languages"] == ("en", "no") and not {"license", "license.name", "tags"} & found.keys()


def test_base_models_and_datasets(tmp_path: Path) -> None:
    found = general(
        card(
            tmp_path / "a",
            "base_model: google/gemma-3-4b-it\ndatasets:\n- https://huggingface.co/NbAiLab/ncc\n- ssh://x/y\n"
            "- {name: Egen, url: 'https://x', author: [1]}",
        )
    )
    related = {key: value for key, value in found.items() if key.startswith(("base_model", "dataset"))}
    assert related == {
        "base_model.count": 1,
        "base_model.0.name": "Gemma 3 4b It",
        "base_model.0.organization": "Google",
        "base_model.0.repo_url": "https://huggingface.co/google/gemma-3-4b-it",
        "dataset.count": 3,
        "dataset.0.name": "Ncc",
        "dataset.0.organization": "NbAiLab",
        "dataset.0.repo_url": "https://huggingface.co/NbAiLab/ncc",
        "dataset.1.repo_url": "ssh://x/y",
        "dataset.2.name": "Egen",
        "dataset.2.url": "https://x",
    }


def test_aliases_do_not_explode(tmp_path: Path) -> None:
    bomb = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40))
    assert "tags" not in general(card(tmp_path / "a", f"a0: &a0 x\n{bomb}\ntags: *a39"))


def sampling(folder: Path, **values: Any) -> dict[str, Any]:
    (folder / "generation_config.json").write_text(json.dumps(values), encoding="utf-8")
    return {k.removeprefix("sampling."): v for k, v in general(folder).items() if k.startswith("sampling.")}


def test_sampling(tmp_path: Path) -> None:
    found = sampling(tmp_path, top_k=64, top_p=1, temperature=0.7, repetition_penalty=1.1, min_p=None, sequence="kt")
    assert found == {"sequence": "kt", "top_k": 64, "top_p": 1.0, "temp": 0.7, "penalty_repeat": 1.1}
    assert sampling(tmp_path, penalty_repeat=1.2, repetition_penalty=1.1) == {"penalty_repeat": 1.2}


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1}, {"temperature": 101}, {"top_k": -1}, {"top_p": 1.5}, {"min_p": -0.1},
        {"repetition_penalty": 0}, {"repetition_penalty": -1.0}, {"penalty_last_n": -2},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_run_would_refuse_is_left_out(
    tmp_path: Path, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert sampling(tmp_path, **values, sequence="kt") == {"sequence": "kt"}
    (name, value), (line,) = next(iter(values.items())), [record.getMessage() for record in caplog.records]
    assert f"left out of the GGUF, since a run would refuse it: {name} {value!r} is not within" in line


def bounds() -> list[tuple[str, float]]:
    names = {"repetition_penalty": "repeat_penalty", "penalty_last_n": "repeat_last_n"}
    read = ("temperature", "top_k", "top_p", "min_p", *names)
    return [(name, bound) for name in read for bound in RANGES[names.get(name, name)]]


@pytest.mark.parametrize(("name", "value"), bounds(), ids=str)
def test_a_run_takes_what_converting_writes(tmp_path: Path, name: str, value: float) -> None:
    """Also the bounds, some of which no float32 has."""
    model = Checkpoint(tmp_path, None, {}, {})
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}), encoding="utf-8")
    entries = [kv for kv in general_kv(model, 1) if kv.key.startswith("general.sampling.")]
    (stored,) = [replace(kv, value=np.array(kv.value, SCALARS[kv.type]).item()) for kv in entries]
    assert getattr(sampling_from_metadata(Stored(stored)), KEYS[stored.key]) == stored.value


class Stored:
    """Metadata of one entry, as read from a GGUF."""

    def __init__(self, entry: KV) -> None:
        self.entry = entry

    def find(self, key: str) -> KV | None:
        return self.entry if key == self.entry.key else None


@pytest.mark.parametrize("values", [{"top_k": 1.5}, {"top_k": 1 << 31}, {"top_p": "1"}, {"mirostat": True}], ids=str)
def test_bad_sampling(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"generation_config.json: {next(iter(values))} is"):
        sampling(tmp_path, **values)
