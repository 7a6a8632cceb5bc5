"""Which model file a name means, here and on a Hub that runs here."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from borealis_gguf.errors import InvalidInput
from borealis_gguf.runtime.find import find_model

from ..helpers.hub_server import Hub, serve

FILES = [
    "borealis-4b-Q4_K_M.gguf", "borealis-4b-Q8_0.gguf", "borealis-4b-BF16-00001-of-00002.gguf",
    "borealis-4b-BF16-00002-of-00002.gguf", "mmproj-borealis-4b-F16.gguf", "mmproj-borealis-4b-BF16.gguf",
    "README.md", "../evil-Q4_K_M.gguf", "sub/x-Q4_K_M.gguf",
]  # fmt: skip
REPO, ONE, NONE = "NbAiLab/borealis-4b-gguf", "NbAiLab/en", "NbAiLab/ingen"
REPOS = {
    REPO: {name: name.encode() for name in FILES},
    ONE: {"tale-Q5_K_M.gguf": b"x"},
    NONE: {"config.json": b"{}"},
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve(Hub(REPOS)) as running:
        yield running


def fetched(hub: Hub, cache: Path, model: str) -> tuple[int, list[str]]:
    """huggingface_hub reads its settings when it is imported: so, in a process of its own."""
    code = (
        f"import sys; sys.path[:] = {sys.path!a}\n"
        "from borealis_gguf.errors import BorealisError\n"
        "from borealis_gguf.runtime.find import find_model\n"
        "seen = []\n"
        "try: print(find_model(sys.argv[1], lambda done, total: seen.append((done, total))).name)\n"
        "except BorealisError as error: sys.exit(str(error))\n"
    )
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, model], env=env, capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    names = sorted(path.name for path in cache.rglob("*.gguf") if "snapshots" in path.parts)
    return done.returncode, [*(done.stdout or done.stderr).split("\n")[:1], *names]


def test_a_file_and_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "blå bær"
    folder.mkdir()
    for name in ("mmproj-a-F16.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf", "b.txt"):
        (folder / name).touch()
    assert find_model(folder) == find_model(str(folder)) == folder / "a-Q8_0-00001-of-00002.gguf"
    assert find_model(folder / "ikke.gguf") == folder / "ikke.gguf"
    (folder / "c-Q4_0.gguf").touch()
    with pytest.raises(InvalidInput, match=r"a-Q8_0-00001-of-00002\.gguf, c-Q4_0\.gguf; name one model file"):
        find_model(folder)
    with pytest.raises(InvalidInput, match="no GGUF of a model"):
        find_model(tmp_path)
    with pytest.raises(InvalidInput, match="no such file or folder, and not a Hub id"):
        find_model("finnes ikke")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (REPO, ["borealis-4b-Q4_K_M.gguf", "borealis-4b-Q4_K_M.gguf", "mmproj-borealis-4b-F16.gguf"]),
        (f"{REPO}:q8_0", ["borealis-4b-Q8_0.gguf", "borealis-4b-Q8_0.gguf", "mmproj-borealis-4b-F16.gguf"]),
        (f"hf://{REPO}@v1:BF16", ["borealis-4b-BF16-00001-of-00002.gguf", *FILES[2:5]]),
        (ONE, ["tale-Q5_K_M.gguf", "tale-Q5_K_M.gguf"]),
    ],
)
def test_a_model_on_the_hub(hub: Hub, tmp_path: Path, model: str, expected: list[str]) -> None:
    assert fetched(hub, tmp_path, model) == (0, expected)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (f"{REPO}:Q2_K", "no file for 'Q2_K'; there are borealis-4b-BF16-00001-of-00002.gguf, borealis-4b-Q4_K_M.gguf"),
        (NONE, "no file for 'Q4_K_M'; there are no GGUF; is it a checkpoint? borealis-gguf quantize makes one"),
        ("NbAiLab/finnes-ikke", "no such model on the Hub, or you may not see it"),
        ("NbAiLab/a--b", "no name has '--'"),
    ],
)
def test_no_such_model_on_the_hub(hub: Hub, tmp_path: Path, model: str, words: str) -> None:
    code, (message, *files) = fetched(hub, tmp_path, model)
    assert code == 1 and words in message and files == []
