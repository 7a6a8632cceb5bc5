"""Adapters on the command line."""

from pathlib import Path

import click
import pytest

from borealis_gguf import api
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.cli.common_options import ScaledFile, loras

from ..helpers.lora_adapters import FOR_NANO, PLAIN, base
from .test_cli import run


def test_merge_convert_and_run(tmp_path: Path, nano: Path, nano_q8: Path) -> None:
    lora, out = FOR_NANO.write(tmp_path), tmp_path / "ut"
    out.mkdir()
    done = run("quantize", "Q8_0", "-m", nano, "--lora", lora, "--lora-scale", "0.25", "-o", out / "merged.gguf")
    assert done.returncode == 0, done.stderr
    by_library = api.plan_quantize(nano, ["Q8_0"], out / "same.gguf", loras=[(lora, 0.25)])
    api.execute(by_library)
    assert (out / "merged.gguf").read_bytes() == (out / "same.gguf").read_bytes() != nano_q8.read_bytes()
    done = run("convert-lora", lora, "--base", nano, "-o", out)
    assert done.returncode == 0, done.stderr
    adapter = out / "for-nano-lora.gguf"
    kv = {kv.key: kv.value for kv in read_gguf(adapter).kv}
    assert (kv["general.type"], kv["adapter.type"], kv["adapter.lora.alpha"]) == ("adapter", "lora", 8.0)
    ask = ("Norge er", "--raw", "-n", "8", "--temperature", "0", "-c", "64")
    beside = run("run", nano_q8, *ask, "--lora", f"{adapter}:0.25")
    assert beside.returncode == 0, beside.stderr
    assert beside.stdout == run("run", out / "merged.gguf", *ask).stdout != run("run", nano_q8, *ask).stdout


def test_faults_are_one_line(tmp_path: Path) -> None:
    source, lora = base("BF16").write(tmp_path), PLAIN.write(tmp_path)
    for args, words in (
        (("convert", source, "--lora", tmp_path), "holds no adapter_config.json"),
        (("convert-lora", source, "--base", lora), "holds no adapter_config.json"),
        (("convert", source, "--lora", lora, "--lora-scale", "nan"), "a scale of nan"),
    ):
        done = run(*args, cwd=tmp_path)
        assert done.returncode == 2, args
        assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = run("convert", source, "--lora-scale", "1", cwd=tmp_path)
    assert done.returncode == 2 and "0 --lora and 1 --lora-scale" in done.stderr
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize(
    ("text", "file", "scale"),
    [
        ("a.gguf", "a.gguf", 1.0),
        ("a.gguf:0.25", "a.gguf", 0.25),
        ("a.gguf:-1e-1", "a.gguf", -0.1),
        (r"C:\lora\a.gguf", r"C:\lora\a.gguf", 1.0),
        (r"C:\lora\a.gguf:2", r"C:\lora\a.gguf", 2.0),
        ("C:2", "C:2", 1.0),
        ("a.gguf:", "a.gguf:", 1.0),
        ("a.gguf:x", "a.gguf:x", 1.0),
        ("dir:1/a.gguf", "dir:1/a.gguf", 1.0),
        ("æ ø.gguf:0.5", "æ ø.gguf", 0.5),
    ],
)
def test_a_file_and_its_scale(text: str, file: str, scale: float) -> None:
    assert ScaledFile().convert(text, None, None) == (Path(file), scale)


def test_one_scale_for_each_adapter_or_none() -> None:
    a, b = Path("a"), Path("b")
    assert loras([a, b], []) == [(a, 1.0), (b, 1.0)]
    assert loras([a, b], [0.25, 2]) == [(a, 0.25), (b, 2.0)]
    with pytest.raises(click.UsageError, match="2 --lora and 1 --lora-scale"):
        loras([a, b], [0.25])
