"""Folders in other formats, trainers' folders, files that are left over: what is said, once, and what to do."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from borealis_gguf import api
from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.gguf import GGUFFile
from borealis_gguf.checkpoint.source import read_source
from borealis_gguf.cli.main import cli
from borealis_gguf.convert.describe import describe
from borealis_gguf.errors import InvalidInput

from ..helpers import attacks as a
from ..helpers import families
from ..helpers.checkpoints import Miniature, config, write_json

FORMAT = "of the same model in transformers' format (often in the same repository)"
ONE = "model-00001-of-00002.safetensors"


def put(folder: Path, *names: str) -> Path:
    """Empty files, and safetensors of one tensor."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(a.one() if name.endswith(".safetensors") else b"{}")
    return folder


def refused(source: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        api.plan_convert(source)
    return str(caught.value)


def no_files(folder: Path) -> None:
    pass


# --- Mistral's own format -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normistral-7b-warm-mini", "qwen2-mini", "m"])
def test_tekken(tmp_path: Path, name: str) -> None:
    """A folder with tekken.json alone is told what to fetch; beside another tokenizer it does not matter."""
    model = next((family for family in families.FAMILIES if family.name == name), Miniature("m", config()))
    folder = put(model.write(tmp_path), "tekken.json")
    describe(open_checkpoint(folder), "auto")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert refused(folder) == (
        f"{folder}: tekken.json is a tokenizer in Mistral's own format, which is not read; fetch tokenizer.json and "
        f"tokenizer_config.json {FORMAT}"
    )


def test_a_tokenizer_in_vocab_json_and_none(tmp_path: Path) -> None:
    folder = Miniature("m", config(), tokenizer=no_files).write(tmp_path)
    assert refused(folder).endswith("neither tokenizer.model nor tokenizer.json is there; fetch one of them")
    assert "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)" in refused(put(folder, "vocab.json"))


@pytest.mark.parametrize("names", [("consolidated.safetensors",), ("consolidated-00001-of-00002.safetensors",)])
def test_consolidated_weights(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = put(tmp_path / "m", *names, "params.json", "tekken.json")
    what = f"a model in Mistral's own format ({names[0]} and params.json), which is not read; fetch config.json, "
    assert refused(folder) == f"{folder}: {what}model*.safetensors and tokenizer.json {FORMAT}"
    put(folder, "config.json")
    assert refused(folder).startswith(f"{folder}: holds neither model.safetensors nor model.safetensors.index.json.")
    assert f"json. It is {what}" in refused(folder)
    (folder / "params.json").unlink()
    assert f"({names[0]}), which is not read" in refused(folder)


def test_consolidated_weights_beside_the_usual_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Mistral publishes both."""
    for shards in (1, 2):
        folder = Miniature(f"m{shards}", config(), shards=shards).write(tmp_path)
        describe(open_checkpoint(put(folder, "consolidated.safetensors", "params.json")), "auto")
    assert not caplog.records


# --- trainers' folders ----------------------------------------------------------------------------------------------


def test_a_trainers_output_folder(tmp_path: Path) -> None:
    folder = tmp_path / "norsk modell"
    put(folder, "checkpoint-9/config.json", "checkpoint-1000/config.json", "checkpoint-500/config.json")
    put(folder, "checkpoint-2000/adapter_config.json", "checkpoint-last/config.json", "runs/x", "optimizer.pt")
    assert refused(folder) == (
        f"{folder}: a trainer's output folder; its newest checkpoint is checkpoint-1000: "
        f"borealis-gguf convert '{folder}/checkpoint-1000', or "
        f"borealis-gguf quantize PRESET -m '{folder}/checkpoint-1000'"
    )


def test_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "checkpoint-5/config.json")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["convert"])
    assert isinstance(done.exception, InvalidInput) and done.exception.exit_code == 2
    assert str(done.exception).startswith(".: a trainer's output folder; its newest checkpoint is checkpoint-5: ")
    assert "borealis-gguf convert checkpoint-5, or " in str(done.exception)


def test_folders_that_are_no_trainers(tmp_path: Path) -> None:
    put(tmp_path, "checkpoint-x/config.json", "checkpoint-5/optimizer.pt")
    assert "holds no config.json (a checkpoint)" in refused(tmp_path)
    put(tmp_path, "checkpoint-5/config.json", "m.gguf").joinpath("m.gguf").write_bytes(
        a.gguf([a.ARCH, a.kv("general.type", a.STRING, a.string("model"))], [a.ONE], bytes(128))
    )
    assert isinstance(read_source(tmp_path), GGUFFile)


def test_what_a_trainer_leaves_in_a_checkpoint_does_not_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Miniature("m", config()).write(tmp_path)
    expected = describe(open_checkpoint(folder), "auto")
    put(folder, "optimizer.pt", "training_args.bin", "trainer_state.json", "rng_state.pth", "scheduler.pt")
    put(folder, "checkpoint-5/config.json", "checkpoint-5/model.safetensors", "lora/adapter_config.json")
    put(folder, "lora/adapter_model.safetensors")
    assert describe(open_checkpoint(folder), "auto") == expected and not caplog.records


# --- files left over ------------------------------------------------------------------------------------------------


def warnings(source: Path, out: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of a quantization to two presets, and of a check of one of them."""
    caplog.clear()
    plans = api.plan_quantize(source, ["Q8_0", "Q4_0"], out)
    api.execute(plans)
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    assert api.check(plans[0].path, source).ok
    assert [record.getMessage() for record in caplog.records] == found
    return found


def test_files_that_the_index_does_not_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Miniature("m", config(), shards=2).write(tmp_path)
    assert warnings(source, tmp_path, caplog) == []
    before = (tmp_path / "m-Q8_0.gguf").read_bytes()
    put(source, "model-00003-of-00003.safetensors")
    (source / "model-00001-of-00003.safetensors").write_bytes(b"not read")
    names = "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors"
    listed = "model.safetensors.index.json names the files of the model"
    assert warnings(source, tmp_path, caplog) == [f"{source}: not used: {names}; {listed}"]
    assert (tmp_path / "m-Q8_0.gguf").read_bytes() == before
    put(source, "a.safetensors", "b.safetensors", "c.safetensors")
    (said,) = warnings(source, tmp_path, caplog)
    assert said == f"{source}: not used: a.safetensors, b.safetensors, c.safetensors and 2 more; {listed}"


def test_files_beside_a_single_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = put(Miniature("m", config()).write(tmp_path), ONE, "adapter_model.safetensors")
    said = f"{source}: not used: adapter_model.safetensors, {ONE}; model.safetensors is the whole model"
    assert warnings(source, tmp_path, caplog) == [said]


def test_a_single_file_and_an_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Miniature("m", config(), shards=2).write(tmp_path)
    (tmp_path / "single").mkdir()
    shutil.copy(Miniature("m", config()).write(tmp_path / "single") / "model.safetensors", source)
    said = f"{source}: holds both model.safetensors and model.safetensors.index.json; the former is used"
    assert warnings(source, tmp_path, caplog) == [said]


def test_a_wrong_total_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Miniature("m", config(), shards=2).write(tmp_path)
    index = open_checkpoint(source)
    weight_map = {name: slice.path.name for name, slice in index.tensors.items()}
    write_json(source / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})
    (said,) = warnings(source, tmp_path, caplog)
    assert "model.safetensors.index.json: total_size is 1, but the tensors have " in said
