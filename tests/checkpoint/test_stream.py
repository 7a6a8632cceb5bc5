"""Weights read over the network, from a Hub that runs here and behaves, or does not."""

import gzip
import hashlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.checkpoint.folder import open_checkpoint
from borealis_gguf.checkpoint.hub import retry
from borealis_gguf.checkpoint.hub.remote import RemoteFile, open_slice
from borealis_gguf.checkpoint.hub.retry import retry_after
from borealis_gguf.checkpoint.hub.stream import find, open_stream, read_remote_header
from borealis_gguf.convert.describe import describe
from borealis_gguf.errors import BorealisError, Cancelled
from borealis_gguf.pipeline.equal_slices import require_equal
from borealis_gguf.pipeline.execute import execute
from borealis_gguf.pipeline.layout import lay_out
from borealis_gguf.pipeline.memory_estimate import memory_needed
from borealis_gguf.pipeline.plan import FilePlan
from borealis_gguf.pipeline.read_ahead import READERS, REQUEST_BYTES
from borealis_gguf.pipeline.tasks import CHUNK_WEIGHTS

from ..conftest import NANO
from ..helpers import attacks as a
from ..helpers.checkpoints import Miniature, config
from ..helpers.hub_server import COMMIT, SIGNATURE, Fault, Hub, serve
from ..helpers.tiny import CODEC
from .test_hub import TOKEN

REPO = "NbAiLab/nano-nb-7m"
SHARD = "model-00002-of-00003.safetensors"
FILES = {file.name: file.read_bytes() for file in NANO.iterdir()}
LARGE = 4_991_000


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(retry, "BACKOFF", 0.01)
    with serve(Hub({REPO: dict(FILES)}, cdn=True)) as server:
        yield server


def pinned(hub: Hub, name: str = SHARD) -> RemoteFile:
    return RemoteFile(find(REPO, COMMIT, name, hub.url))


def failed(call: Callable[[], Any]) -> str:
    with pytest.raises(BorealisError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert TOKEN not in message and SIGNATURE not in message
    return message


# ---- one file


def test_any_range_of_a_file(hub: Hub) -> None:
    data = FILES[SHARD]
    with pinned(hub) as file:
        assert file.read(10) == data[:10]
        file.seek(4_000_000)
        buffer = bytearray(900_001)
        assert file.readinto(buffer) == 900_001
        assert buffer == data[4_000_000:4_900_001]
        assert file.readinto(buffer) == LARGE - 4_900_001  # up to the end
        assert file.readinto(buffer) == 0
    assert hub.ranges == ["bytes=0-9", "bytes=4000000-4900000", f"bytes=4900001-{LARGE - 1}"]
    assert hub.links == 2  # one to pin the file, one to read it


def test_the_token_goes_to_the_hub_alone(hub: Hub) -> None:
    pinned(hub).read(100)
    assert hub.hosts == {"127.0.0.1": {f"Bearer {TOKEN}"}, "localhost": {""}}
    assert not any(TOKEN in line for line in hub.asked)


def test_a_redirect_in_the_middle_drops_the_token(hub: Hub) -> None:
    link = f"http://localhost:{hub.port}/cdn/{REPO}/tokenizer.json?{SIGNATURE}"
    hub.faults["tokenizer.json"] = [Fault(302, {"Location": link, "Content-Length": "0"}, lambda _: b"")]
    file = pinned(hub, "tokenizer.json")
    assert file.read(100) == FILES["tokenizer.json"][:100]
    assert hub.hosts == {"127.0.0.1": {f"Bearer {TOKEN}"}, "localhost": {""}}


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(500), Fault(502), Fault(503), Fault(504)],
        [Fault(429, {"Retry-After": "0"})],
        [Fault(reset=1_000_000)],
        [Fault(reset=0), Fault(reset=70_000), Fault(reset=3_000_000)],
        [Fault(close=123_457)],
        [Fault(headers={"Content-Length": str(LARGE + 7)})],
        [Fault(headers={"Content-Range": f"bytes 1-{LARGE}/{LARGE + 1}"})],
        [Fault(headers={"Content-Range": f"bytes 0-{LARGE - 1}/{LARGE + 1}"})],
        [Fault(403), Fault(404)],
    ],
    ids=["5xx", "429", "reset", "resets", "short", "long promise", "other range", "other size", "expired link"],
)
def test_trouble_that_passes(hub: Hub, faults: list[Fault]) -> None:
    hub.faults[SHARD] = list(faults)
    assert pinned(hub).read(LARGE) == FILES[SHARD]
    assert not hub.faults[SHARD]
    assert hub.links == 2 + len(faults)  # the way is asked for anew after every fault


def test_a_read_goes_on_at_the_byte_where_it_broke(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(close=1_000_000), Fault(503), Fault(close=2_000_000)]
    file = pinned(hub)
    file.seek(1000)
    assert file.read(4_000_000) == FILES[SHARD][1000:4_001_000]
    assert hub.ranges == [f"bytes={n}-4000999" for n in (1000, 1_001_000, 1_001_000, 3_001_000)]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(ignore_range=True), "localhost sends whole files and no ranges of them; leave --stream out"),
        (Fault(headers={"ETag": '"another"'}), "changed while it was read; run again"),
        (
            Fault(headers={"Content-Encoding": "gzip"}, body=gzip.compress),
            "localhost sends it packed, which ranges cannot be; leave --stream out",
        ),
        (Fault(416), "localhost answered 416 to a request for bytes from 500000"),
        (Fault(204), "localhost answered 204 to a request"),
        (
            Fault(
                headers={"Transfer-Encoding": "chunked"},
                body=lambda b: b"80000\r\n" + bytes(1 << 19) + b"\r\n0\r\n\r\n",
            ),
            "localhost sent more than the 500000 bytes that were asked for",
        ),
    ],
)
def test_answers_that_are_not_believed(hub: Hub, fault: Fault, expected: str) -> None:
    file = pinned(hub)
    file.read(500_000)
    hub.faults[SHARD] = [fault]
    message = failed(lambda: file.read(500_000))
    assert message.startswith(f"{REPO}@c0ffee0/{SHARD}: ") and expected in message
    assert len(hub.ranges) <= 2  # said at once, not tried again


def test_an_etag_that_changes_between_a_break_and_its_resumption(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(close=1_000_000), Fault(headers={"ETag": '"another"'})]
    assert "changed while it was read" in failed(lambda: pinned(hub).read(LARGE))


def test_a_file_that_changes_on_the_hub(hub: Hub) -> None:
    file = pinned(hub)
    file.read(1000)
    hub.repos[REPO][SHARD] = FILES[SHARD][:-1] + b"x"
    file.location = None  # as after any trouble
    assert "changed on the Hub while it was read" in failed(lambda: file.read(1000))


def test_a_small_file_that_comes_whole(hub: Hub) -> None:
    hub.faults["config.json"] = [Fault(ignore_range=True)]
    assert pinned(hub, "config.json").read(5000) == FILES["config.json"]


def test_trouble_that_does_not_pass(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(503)] * 99
    assert "localhost answered 503, 6 times in a row; try again later" in failed(lambda: pinned(hub).read(10))
    assert len(hub.ranges) == 6
    hub.faults[SHARD] = [Fault(429, {"Retry-After": "3600"})]
    assert "localhost answered 429, and asks to wait 3600 s; try again then" in failed(lambda: pinned(hub).read(10))


def test_retry_after_is_waited_for(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(429, {"Retry-After": "1"})]
    file, began = pinned(hub), time.monotonic()
    file.read(10)
    assert 1 <= time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "17"}, 17),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({"RateLimit": '"resolvers";r=0;t=42'}, 42),
        ({}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after(headers) == expected


def test_a_server_that_names_the_time_of_day() -> None:
    wait = retry_after({"Retry-After": formatdate(time.time() + 1000, usegmt=True)})
    assert wait is not None and 990 < wait <= 1000


def test_a_read_that_waits_can_be_stopped(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(429, {"Retry-After": "300"})]
    stop = threading.Event()
    file = RemoteFile(find(REPO, COMMIT, SHARD, hub.url), stop)
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        file.read(LARGE)
    assert time.monotonic() - began < 2


# ---- a checkpoint


def plan(hub: Hub, output: Path) -> FilePlan:
    model, types = describe(open_stream(REPO, None, endpoint=hub.url), "q8_0")
    return lay_out(output, model, types)


@pytest.fixture(scope="session")
def local_q8(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a download of the same repository would become."""
    folder = tmp_path_factory.mktemp("local") / COMMIT
    shutil.copytree(NANO, folder)
    model, types = describe(open_checkpoint(folder, repo_id=REPO), "q8_0")
    planned = lay_out(folder / "local.gguf", model, types)
    execute([planned], CODEC)
    return sha(planned.path)


def test_streamed_bytes_are_those_of_a_local_checkpoint(hub: Hub, tmp_path: Path, local_q8: str) -> None:
    planned = plan(hub, tmp_path / "x.gguf")
    assert (
        sum(int(r.partition("-")[2]) - int(r[6:].partition("-")[0]) for r in hub.ranges) < 2_000_000
    )  # no weights yet
    execute([planned], CODEC, jobs=2, open_slice=open_slice)
    assert sha(planned.path) == local_q8
    assert list(tmp_path.iterdir()) == [planned.path]


@pytest.mark.parametrize("head", ["untied", "tied"])
def test_a_stored_output_layer(hub: Hub, tmp_path: Path, head: str) -> None:
    """Whether it is the embedding once more is compared where the weights lie, before files are written."""
    folder = Miniature(COMMIT, config(tie_word_embeddings=head == "tied"), head=head).write(tmp_path)
    hub.repos[REPO] = {file.name: file.read_bytes() for file in folder.iterdir()}
    planned = plan(hub, tmp_path / "x.gguf")
    assert ("output.weight" in {t.tensor.name for t in planned.tensors}) == (head == "untied")
    require_equal(planned.model.equal, open_slice)
    execute([planned], CODEC, jobs=2, open_slice=open_slice)
    model, types = describe(open_checkpoint(folder, repo_id=REPO), "q8_0")
    local = lay_out(tmp_path / "local.gguf", model, types)
    execute([local], CODEC)
    assert sha(planned.path) == sha(local.path)


def test_an_output_layer_that_is_tied_and_differs(hub: Hub, tmp_path: Path) -> None:
    folder = Miniature(COMMIT, config(), head="untied").write(tmp_path)
    hub.repos[REPO] = {file.name: file.read_bytes() for file in folder.iterdir()}
    planned = plan(hub, tmp_path / "x.gguf")
    assert "lm_head.weight is not the embedding" in failed(lambda: require_equal(planned.model.equal, open_slice))


def test_the_same_bytes_through_every_fault(hub: Hub, tmp_path: Path, local_q8: str) -> None:
    planned = plan(hub, tmp_path / "x.gguf")
    for n in (1, 2, 3):
        name = f"model-0000{n}-of-00003.safetensors"
        hub.faults[name] = [
            Fault(503),
            Fault(reset=100),
            Fault(429, {"Retry-After": "0"}),
            Fault(close=50),
            Fault(403),
        ] * 3
    execute([planned], CODEC, jobs=3, open_slice=open_slice)
    assert sha(planned.path) == local_q8
    assert not any(hub.faults.values())


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(headers={"ETag": '"another"'}), "changed while it was read"),
        (Fault(ignore_range=True), "sends whole files"),
        (Fault(headers={"Content-Encoding": "gzip"}), "sends it packed"),
    ],
)
def test_a_run_that_fails_leaves_nothing(hub: Hub, tmp_path: Path, fault: Fault, expected: str) -> None:
    planned = plan(hub, tmp_path / "x.gguf")
    hub.faults[SHARD] = [Fault()] * READERS + [fault] * 99
    assert expected in failed(lambda: execute([planned], CODEC, jobs=2, open_slice=open_slice))
    assert not list(tmp_path.iterdir())


def test_a_run_stops_though_the_network_hangs(hub: Hub, tmp_path: Path) -> None:
    planned = plan(hub, tmp_path / "x.gguf")
    for n in (1, 2, 3):
        hub.faults[f"model-0000{n}-of-00003.safetensors"] = [Fault(stall=8)] * 99
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        execute([planned], CODEC, stop=stop, open_slice=open_slice)
    assert time.monotonic() - began < 2
    assert not list(tmp_path.iterdir())


def test_reads_are_large_and_memory_is_bounded(hub: Hub, tmp_path: Path) -> None:
    planned = plan(hub, tmp_path / "x.gguf")
    hub.ranges.clear()
    execute([planned], CODEC, jobs=1, open_slice=open_slice)
    assert len(hub.ranges) == len(planned.tensors)  # each is smaller than a batch, and read by one request
    buffers = 2 * 8 * CHUNK_WEIGHTS
    assert memory_needed([planned], 2) < (READERS + 2) * REQUEST_BYTES + buffers


def test_the_network_is_waited_for_by_many_at_a_time(hub: Hub, tmp_path: Path) -> None:
    planned = plan(hub, tmp_path / "x.gguf")
    assert len(planned.tensors) == 80
    for n in (1, 2, 3):
        hub.faults[f"model-0000{n}-of-00003.safetensors"] = [Fault(stall=0.25)] * 80
    began = time.monotonic()
    execute([planned], CODEC, jobs=1, open_slice=open_slice)
    assert time.monotonic() - began < 12  # 20 seconds one after another, 2.5 eight at a time


@pytest.mark.parametrize("name", sorted(a.SAFETENSORS))
def test_a_header_is_as_strictly_checked_as_a_local_one(hub: Hub, name: str) -> None:
    data, expected = a.SAFETENSORS[name]
    hub.repos[REPO] = {"model.safetensors": data}
    message = failed(lambda: read_remote_header(find(REPO, COMMIT, "model.safetensors", hub.url)))
    assert message.startswith(f"{REPO}@c0ffee0/model.safetensors: ")
    assert re.search(expected, message), message


def test_an_index_is_compared_with_the_headers(hub: Hub) -> None:
    del hub.repos[REPO][SHARD]
    message = failed(lambda: open_stream(REPO, None, endpoint=hub.url))
    assert f"{SHARD}: missing, though model.safetensors.index.json lists it" in message


def test_a_copy_that_changes_between_header_and_weights(hub: Hub, tmp_path: Path) -> None:
    planned = plan(hub, tmp_path / "x.gguf")
    hub.faults[SHARD] = [Fault(headers={"ETag": '"another"'})] * 99
    assert f"{SHARD}: changed while it was read" in failed(lambda: execute([planned], CODEC, open_slice=open_slice))


def test_small_files_leave_with_their_folder(hub: Hub) -> None:
    found = open_stream(REPO, "v1", endpoint=hub.url)
    folder = found.path
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: data for name, data in FILES.items() if not name.endswith(".safetensors")
    }
    assert folder.name == COMMIT
    del found
    assert not folder.parents[1].exists()


def test_progress_and_stopping_while_planning(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[tuple[int, int]] = []
    open_stream(REPO, None, lambda done, total: seen.append((done, total)), endpoint=hub.url)
    total = sum(len(data) for name, data in FILES.items() if not name.endswith(".safetensors"))
    assert seen[-1] == (total, total) and len(seen) == 9

    def enough(done: int, total: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        open_stream(REPO, None, enough, endpoint=hub.url)
    assert not list(tmp_path.iterdir())


def test_trouble_while_pinning(hub: Hub) -> None:
    hub.status = {REPO: (503, "")}
    assert f"{REPO}: no such folder here: the Hub answered 503, 3 times in a row" in failed(
        lambda: open_stream(REPO, None, endpoint=hub.url)
    )
    hub.status = {REPO: (403, "GatedRepo")}
    assert "accept the licence at https://huggingface.co/NbAiLab/nano-nb-7m first" in failed(
        lambda: open_stream(REPO, None, endpoint=hub.url)
    )
    hub.files_only = {REPO}  # everybody may list a gated model's files
    assert "accept the licence at" in failed(lambda: open_stream(REPO, None, endpoint=hub.url))
    hub.status = {REPO: (401, "")}
    assert "accept its licence at https://huggingface.co/NbAiLab/nano-nb-7m" in failed(
        lambda: open_stream(REPO, None, endpoint=hub.url)
    )


def test_permission_withdrawn_in_the_middle(hub: Hub) -> None:
    file = pinned(hub)
    file.read(1000)
    hub.status = {REPO: (403, "GatedRepo")}
    hub.faults[SHARD] = [Fault(403)]
    assert "accept the licence at https://huggingface.co/NbAiLab/nano-nb-7m first" in failed(lambda: file.read(1000))
