"""The program as a user meets it: run as a process, from any folder, with any name."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from borealis_gguf.cli.quantize import quantize
from borealis_gguf.quantize.encoders import native
from borealis_gguf.quantize.presets import PRESETS

BOOT = "from borealis_gguf.cli.main import main; main()"


def run(*args: str | Path, cwd: Path | None = None, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BOOT, *map(str, args)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONUTF8": "1"}
    return subprocess.run(
        command, cwd=cwd, env=env, input=text, capture_output=True, encoding="utf-8", timeout=120, check=False
    )


@pytest.fixture
def checkpoint(tmp_path: Path, nano: Path) -> Path:
    """The real checkpoint, in a folder whose name has a space and æøå."""
    return Path(shutil.copytree(nano, tmp_path / "blå bær" / "nano-nb-7m"))


def test_one_pass_from_the_folder_you_stand_in(checkpoint: Path) -> None:
    done = run("quantize", "Q4_K_M", "q8_0", cwd=checkpoint)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    table = [line.split() for line in done.stdout.splitlines()]
    assert table[0] == ["File", "Preset", "Size", "Bits/weight", "Time"]
    assert [row[:5] for row in table[1:]] == [
        ["nano-nb-7m-Q4_K_M.gguf", "Q4_K_M", "4.3", "MB", "5.02"],
        ["nano-nb-7m-Q8_0.gguf", "Q8_0", "7.3", "MB", "8.52"],
    ]
    assert (checkpoint / "nano-nb-7m-Q8_0.gguf").stat().st_size > 7_000_000


def test_convert_then_quantize_then_inspect(checkpoint: Path) -> None:
    out = checkpoint.parent / "ut"
    out.mkdir()
    assert run("convert", checkpoint, "-o", out, "--model-name", "Nano på norsk").returncode == 0
    master = out / "nano-nb-7m-BF16.gguf"
    done = run("quantize", "Q6_K", "-m", master, "-o", out / "seks.gguf", "--json")
    (file,) = json.loads(done.stdout)["files"]
    assert file["preset"] == "Q6_K"
    assert file["size"] == (out / "seks.gguf").stat().st_size
    shown = run("inspect", out / "seks.gguf")
    assert "token_embd.weight" in shown.stdout
    assert "'Nano på norsk'" in shown.stdout
    content = json.loads(run("inspect", out / "seks.gguf", "--json").stdout)
    assert {kv["key"]: kv["value"] for kv in content["kv"]}["general.name"] == "Nano på norsk"
    assert len(content["tensors"]) == 80


def test_dry_run_shows_the_plan_and_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    before = sorted(checkpoint.iterdir())
    done = run("quantize", "Q4_K_M", "Q8_0", "--dry-run", cwd=checkpoint)
    assert done.returncode == 0
    assert "blk.0.attn_v.weight" in done.stdout
    assert "Disk: 11.6 MB." in done.stdout
    plan = json.loads(run("quantize", "Q4_K_M", "--dry-run", "--json", cwd=checkpoint).stdout)
    types = {t["name"]: t["type"] for t in plan["files"][0]["tensors"]}
    assert types["token_embd.weight"] == "Q6_K"
    assert types["blk.0.attn_q.weight"] == "Q4_K"
    assert plan["disk"] == plan["files"][0]["size"]
    assert {t["requested"] for t in plan["files"][0]["tensors"]} == {None}
    assert sorted(checkpoint.iterdir()) == before


def test_a_narrow_model_is_told_of_its_fallbacks(tmp_path: Path) -> None:
    from ..quantize.test_parity import MODELS, write_model

    source = write_model(tmp_path / "borealis-270m-BF16.gguf", *MODELS["270m"])
    done = run("quantize", "Q4_K_M", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert source.is_file()
    assert "since rows of 640 do not fill their blocks" in done.stderr
    assert "Q8_0 is hardly larger" in done.stderr


def test_run_answers_from_argument_and_from_standard_input(nano_q8: Path) -> None:
    asked = run("run", nano_q8, "Skriv om Norge.", "--seed", "2", "-n", "20")
    assert asked.returncode == 0, asked.stderr
    assert len(asked.stdout.split()) > 3
    assert "<end_of_turn>" not in asked.stdout
    piped = run("run", nano_q8, "--seed", "2", "-n", "20", "-q", text="Skriv om Norge.\n")
    assert (piped.stdout, piped.stderr) == (asked.stdout, "")


def test_run_tells_where_the_model_is(nano_q8: Path) -> None:
    """On standard error; and not of a request that is refused."""
    done = run("run", nano_q8, "Hei", "-n", "1", "--device", "cpu", "--context", "300")
    assert re.fullmatch(r"all layers on CPU, context 300: .* weights, .* cache, .* to compute; .*\n", done.stderr)
    refused = run("run", nano_q8, "Hei " * 300, "--device", "cpu", "--context", "300")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and refused.stderr.startswith("Error: ")


def test_modelfile_lies_beside_its_model(nano_q8: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(nano_q8, tmp_path / "nano-Q8_0.gguf"))
    done = run("modelfile", model)
    assert done.stdout.splitlines()[1] == "FROM ./nano-Q8_0.gguf"
    assert run("modelfile", model, "-o", tmp_path / "Modelfile").returncode == 0
    assert (tmp_path / "Modelfile").read_text(encoding="utf-8") == done.stdout
    elsewhere = run("modelfile", model, "-o", tmp_path.parent / "Modelfile")
    assert elsewhere.returncode == 2
    assert "lies beside its model" in elsewhere.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes links for administrators only")
def test_modelfile_lies_beside_a_link_to_its_model(nano_q8: Path, tmp_path: Path) -> None:
    """As the Hub's cache has it: the link has the name, the file lies among others elsewhere."""
    model = tmp_path / "nano-Q8_0.gguf"
    model.symlink_to(nano_q8)
    done = run("modelfile", model, "-o", tmp_path / "Modelfile")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "Modelfile").read_text(encoding="utf-8").count("FROM ./nano-Q8_0.gguf\n") == 1
    assert run("modelfile", model, "-o", nano_q8.parent / "Modelfile").returncode == 2


def test_faults_of_the_input_are_one_line_and_exit_code_2(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("hei", encoding="utf-8")
    damaged = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    shard = damaged / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    missing = Path(shutil.copytree(checkpoint, tmp_path / "missing"))
    (missing / "model-00003-of-00003.safetensors").unlink()
    strange = Path(shutil.copytree(checkpoint, tmp_path / "strange"))
    config = json.loads((strange / "config.json").read_text(encoding="utf-8"))
    (strange / "config.json").write_text(json.dumps({**config, "architectures": ["RobbeForCausalLM"]}))
    narrow = Path(shutil.copytree(checkpoint, tmp_path / "narrow"))
    (narrow / "config.json").write_text(json.dumps({**config, "intermediate_size": 512}))
    cases = {
        ("convert", tmp_path / "empty"): "config.json",
        ("convert", tmp_path / "none"): "no such file or folder",
        ("convert", damaged): "model-00002-of-00003.safetensors",
        ("convert", missing): "model-00003-of-00003.safetensors: missing",
        ("convert", strange): "'RobbeForCausalLM' is not known",
        ("convert", narrow): "but config.json makes it",
        ("convert", checkpoint, "-o", tmp_path / "no" / "no" / "x.gguf"): "no such folder for the output",
        ("quantize", "Q4_KM", "-m", checkpoint): "did you mean Q4_K_M",
        ("quantize", "IQ2_M", "-m", checkpoint): "needs an importance matrix",
        ("quantize", "Q4_K_M", "-m", tmp_path / "text.gguf"): "neither a GGUF nor a checkpoint",
        ("quantize", "Q4_K_M", "-m", checkpoint, "--imatrix", tmp_path / "text.gguf"): "text.gguf",
        ("quantize", "Q4_K_M", "-m", checkpoint, "--tensor-type", "attn_v"): "PATTERN=TYPE",
        ("quantize", "Q4_K_M", "-m", checkpoint, "--override-kv", "general.name=Nano"): "KEY=TYPE:VALUE",
        ("inspect", tmp_path / "text.gguf"): "text.gguf",
        ("run", tmp_path / "none.gguf", "hei"): "none.gguf",
        ("modelfile", tmp_path / "none.gguf"): "none.gguf",
    }
    before = {path for path in tmp_path.rglob("*") if path.suffix == ".gguf"}
    for args, expected in cases.items():
        done = run(*args, cwd=tmp_path / "empty")
        assert done.returncode == 2, (args, done.stderr)
        assert done.stdout == ""
        assert expected in done.stderr, (args, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("Error: ")
    assert {path for path in tmp_path.rglob("*") if path.suffix == ".gguf"} == before


def test_misuse_shows_usage(tmp_path: Path) -> None:
    for args in (["quantize"], ["convert", "--outtype", "q9"], ["frobnicate"], ["convert", "-j", "0"]):
        done = run(*args, cwd=tmp_path)
        assert done.returncode == 2
        assert "Usage: " in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals for another process")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_within_a_second_and_leave_nothing(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    from ..quantize.test_parity import write_model
    from ..quantize.test_presets import Shape

    write_model(tmp_path / "m-BF16.gguf", Shape("gemma3", 2, 65536, 1 << 20, 8, 4), "BF16")
    command = [sys.executable, "-c", BOOT, "quantize", "Q4_K_M", "IQ4_XS", "IQ3_S", "Q5_K_M"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "BOREALIS_GGUF_ENCODERS": "ggml"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    while not list(tmp_path.glob(".*.partial")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(sent)
    began = time.monotonic()
    assert process.wait(20) == code
    assert time.monotonic() - began < 1
    assert [path.name for path in tmp_path.iterdir()] == ["m-BF16.gguf"]


def test_help_is_quick_and_has_examples() -> None:
    for command in ((), ("convert",), ("quantize",), ("check",), ("run",), ("modelfile",), ("inspect",), ("bench",)):
        done = run(*command, "--help")
        assert done.returncode == 0
        assert command == ("bench",) or "Examples:" in done.stdout
    loaded = "import sys; from borealis_gguf.cli import main; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    modules = subprocess.run([sys.executable, "-c", loaded], env=env, capture_output=True, text=True, check=True)
    assert not {"numpy", "gguf", "llama_cpp", "tqdm", "huggingface_hub"} & set(modules.stdout.split())


def test_help_lists_every_preset() -> None:
    names = set((quantize.help or "").split())
    assert {preset.name for preset in PRESETS if preset.type is not None} <= names


def test_the_list_of_presets_has_their_bits_and_help() -> None:
    done = run("quantize", "--list")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [re.split(r"  +", line) for line in done.stdout.splitlines()]
    assert rows[0] == ["Preset", "Main type", "Bits/weight", "Use"]
    assert [(row[0], row[-1]) for row in rows[1:]] == [(preset.name, preset.help) for preset in PRESETS]
    assert ["Q6_K", "Q6_K", "6.56"] in [row[:3] for row in rows]


def test_bench_encoders_for_machines() -> None:
    done = run(
        "bench", "encoders", "q8_0", "IQ2_XXS", "--source", "bf16", "--seconds", "0.001", "--repetitions", "2", "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    speeds = json.loads(done.stdout)
    assert list(speeds) == ["weights_per_second"]
    cases = [("Q8_0", False), ("Q8_0", True), ("IQ2_XXS", True)]  # IQ2_XXS cannot be without importance
    rows = [(type, importance, isa) for type, importance in cases for isa in native.available_isas()]
    assert [(row["type"], row["importance"], row["kernels"]) for row in speeds["weights_per_second"]] == rows
    for row in speeds["weights_per_second"]:
        assert set(row) == {"type", "importance", "kernels", "ggml", "ours", "ratio", "equal"}
        assert row["equal"] is True
        assert row["ggml"] > 0 and row["ours"] > 0 and row["ratio"] == row["ours"] / row["ggml"]


def test_version() -> None:
    assert run("--version").stdout.startswith("borealis-gguf, version 0.")


def test_check_tells_good_from_bad(nano: Path, nano_q8: Path, tmp_path: Path) -> None:
    from ..helpers.gguf_faults import Weights, drop, permuted_head, with_metadata

    good = run("check", nano_q8, "--against", nano)
    assert good.returncode == 0, good.stdout
    assert good.stdout.splitlines()[-1].startswith("✓ check of nano-nb-7m-Q8_0.gguf: metadata, tensors, weights, ")
    swapped = Weights(nano_q8, tmp_path / "swapped.gguf")
    permuted_head(swapped)
    bad = run("check", swapped.path, "--against", nano, "--json")
    assert bad.returncode == 1
    content = json.loads(bad.stdout)
    failed = [f["where"] for s in content["sections"] for f in s["findings"] if f["status"] == "failed"]
    assert failed == ["blk.0.attn_q.weight"] * 2  # by the plan, and by the cross check
    lost = with_metadata(nano_q8, tmp_path / "lost.gguf", drop("tokenizer.chat_template"))
    quiet = run("check", lost, "--against", nano, "-q")
    assert quiet.returncode == 1
    assert quiet.stdout == ""
    assert "tokenizer.chat_template: key: expected" in quiet.stderr
    assert run("check", tmp_path / "none.gguf", "--against", nano).returncode == 2


def test_what_is_written_is_checked_unless_told_not_to(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint whose generation_config.json names an end that llama.cpp would run past."""
    generation = checkpoint / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [1, 3000]}), encoding="utf-8")
    for command in (("convert", checkpoint), ("quantize", "Q8_0", "-m", checkpoint)):
        done = run(*command, "-o", tmp_path / "x.gguf")
        assert done.returncode == 1
        assert "generation ends at it; found it goes on; nothing was kept" in done.stderr
        assert not (tmp_path / "x.gguf").exists()
        assert run(*command, "-o", tmp_path / f"{command[0]}.gguf", "--no-check").returncode == 0
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == ["convert.gguf", "quantize.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_progress_shows_rate_and_time_left_on_a_terminal(checkpoint: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-c", BOOT, "quantize", "Q4_K_M", "IQ4_XS", "-j", "1"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "BOREALIS_GGUF_ENCODERS": "ggml"}
    process = subprocess.Popen(command, cwd=checkpoint, env=env, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(60) == 0
    assert re.search(rb"\d+%.*M?B/s", shown), shown
    assert re.search(rb"\[\d\d:\d\d<", shown), shown


def test_a_source_in_the_place_of_a_preset_is_told_where_it_belongs(checkpoint: Path) -> None:
    done = run("quantize", checkpoint, "Q8_0")
    assert done.returncode == 2
    assert f"{checkpoint}: is no preset; give the source with -m: quantize PRESET -m {checkpoint}" in done.stderr
