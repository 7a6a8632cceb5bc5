"""Clients that leave, stall or come in crowds; models that die; ends in the middle of work."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from borealis_gguf.checkpoint.types import GGMLQuantizationType
from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.runtime.process.isolated_model import IsolatedModel
from borealis_gguf.runtime.serve.connection_timeout import TimeoutConnection
from borealis_gguf.runtime.serve.server import Server, listen
from borealis_gguf.runtime.serve.service_state import ServerSettings

from ..cli.test_cli import run
from ..helpers.serving import Serving, read_reply, request, serving, until
from ..helpers.sparse_models import GEMMA_27B, write_sparse

CHAT = "/v1/chat/completions"
NORWAY: list[Any] = [{"role": "user", "content": "Skriv om Norge."}]
ENDLESS = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "array", "items": {"type": "integer"}, "minItems": 1000}},
}
LONG = {"messages": NORWAY, "max_tokens": 1900, "response_format": ENDLESS, "seed": 1}
"""It cannot end before its 1900 tokens."""

SHORT: dict[str, Any] = {"messages": NORWAY, "max_tokens": 3, "seed": 1}


@pytest.fixture(scope="module")
def server(nano_q8: Path) -> Iterator[Serving]:
    with serving(nano_q8, parallel=2, queue=1, send_buffer=65536) as running:
        yield running


@pytest.fixture(autouse=True)
def idle(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing is left running by a test."""
    yield
    if "server" in request.fixturenames:
        server: Serving = request.getfixturevalue("server")
        until(lambda: busy(server) == 0)


def busy(server: Serving) -> float:
    stats = server.stats()
    return stats["active"] + stats["waiting"]


def begin(server: Serving, content: Any) -> socket.socket:
    """A request that was sent, and whose stream has begun if it is one."""
    wire = server.connect()
    wire.sendall(request("POST", CHAT, json.dumps(content).encode()))
    if content.get("stream"):
        seen = b""
        while b'"content":"' not in seen.replace(b'"content":""', b""):
            piece = wire.recv(4096)
            assert piece, seen
            seen += piece
    return wire


def child_of(server: Serving) -> int:
    model = server.server.service.model
    assert model is not None
    assert isinstance(model.backend, IsolatedModel)
    child = model.backend._worker
    assert child is not None
    return child._process.pid


def test_leaving_a_stream_frees_its_place(server: Serving) -> None:
    before = server.stats()["cancelled_total"]
    with closing(begin(server, {**LONG, "stream": True})):
        assert server.stats()["active"] == 1
    until(lambda: server.stats()["active"] == 0, 2)
    assert server.stats()["cancelled_total"] == before + 1


def test_leaving_before_the_answer_frees_its_place(server: Serving) -> None:
    before = server.stats()
    with closing(begin(server, LONG)):
        until(lambda: server.stats()["active"] == 1)
    until(lambda: server.stats()["active"] == 0, 2)
    after = server.stats()
    assert after["cancelled_total"] == before["cancelled_total"] + 1
    _, _, metrics = server.ask("GET", "/metrics")
    assert f'route="{CHAT}",status="499"' in metrics.decode()


def test_leaving_with_several_answers(server: Serving) -> None:
    with closing(begin(server, {**LONG, "n": 3, "stream": True})):
        assert busy(server) == 3
    until(lambda: busy(server) == 0, 2)


def test_leaving_in_the_middle_of_a_body(server: Serving) -> None:
    with closing(server.connect()) as wire:
        wire.sendall(request("POST", CHAT, b'{"messages": [', content_length="5000"))
        until(lambda: server.server.service.held_bytes > 0)
    until(lambda: server.server.service.held_bytes == 0, 2)


def test_the_openai_client_leaves(server: Serving) -> None:
    stream = server.client.chat.completions.create(model="nano", **LONG, stream=True)  # type: ignore[call-overload]
    next(iter(stream))
    stream.close()
    until(lambda: busy(server) == 0, 2)


def test_a_full_queue(server: Serving) -> None:
    wires = [begin(server, {**LONG, "stream": True}) for _ in range(2)]
    waiting = begin(server, LONG)
    until(lambda: busy(server) == 3)
    begun = time.monotonic()
    for stream in (False, True):
        status, headers, body = server.post(CHAT, {**SHORT, "stream": stream})
        assert (status, json.loads(body)["error"]["code"]) == (429, "busy")
        assert int(headers["retry-after"]) >= 1
    with pytest.raises(openai.RateLimitError):
        server.client.completions.create(model="nano", prompt="Hei")
    assert time.monotonic() - begun < 5
    assert server.ask("GET", "/health")[0] == 200
    for wire in [*wires, waiting]:
        wire.close()
    until(lambda: busy(server) == 0, 2)
    assert server.post(CHAT, SHORT)[0] == 200


def test_more_answers_than_the_queue_holds_leave_none_behind(server: Serving) -> None:
    assert server.post(CHAT, {**LONG, "n": 8})[0] == 429
    until(lambda: busy(server) == 0, 2)
    status, param, _ = server.error("/v1/completions", {"prompt": ["Hei"] * 4})
    assert (status, param) == (400, "n")


def test_a_reader_that_stalls_blocks_nobody(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimeoutConnection, "stall_seconds", 1.0)
    before = server.stats()["cancelled_total"]
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.connect(("127.0.0.1", server.port))
    content = {**LONG, "stream": True, "logprobs": True, "top_logprobs": 20}
    with closing(stalled):
        stalled.sendall(request("POST", CHAT, json.dumps(content).encode()))  # 2 kB for every token, none of it read
        until(lambda: busy(server) > 0)
        assert server.post(CHAT, SHORT)[0] == 200
        until(lambda: busy(server) == 0, 20)
        stalled.settimeout(5)
        data = b""
        with suppress(ConnectionResetError):
            while piece := stalled.recv(1 << 20):
                data += piece
        assert b"[DONE]" not in data  # it was dropped
    assert server.stats()["cancelled_total"] == before + 1
    assert server.post(CHAT, SHORT)[0] == 200


def test_the_models_death_in_mid_stream(server: Serving) -> None:
    restarts = server.stats()["restarts_total"]
    with closing(begin(server, {**LONG, "stream": True})) as wire, closing(begin(server, LONG)) as other:
        until(lambda: server.stats()["active"] == 2)
        os.kill(child_of(server), getattr(signal, "SIGKILL", signal.SIGTERM))
        _, _, rest = read_reply_after_head(wire)
        status, headers, body = read_reply(other)
    last = [line for line in rest.decode("utf-8", "ignore").split("\r\n") if line.startswith("data: ")][-1]
    error = json.loads(last[6:])["error"]
    assert (error["type"], error["code"]) == ("server_error", "engine_died")
    assert b"[DONE]" not in rest
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, "engine_died", "1")
    assert server.post(CHAT, SHORT)[0] == 200
    assert server.stats()["restarts_total"] == restarts + 1
    assert server.ask("GET", "/health")[0] == 200


def test_asking_for_health_starts_a_dead_model_again(server: Serving) -> None:
    restarts = server.stats()["restarts_total"]
    os.kill(child_of(server), getattr(signal, "SIGKILL", signal.SIGTERM))
    seen = set()

    def healthy() -> bool:
        status, _, body = server.ask("GET", "/health")
        seen.add(json.loads(body)["status"])
        return status == 200 and server.stats()["restarts_total"] == restarts + 1

    until(healthy, 20)
    assert seen <= {"ok", "restarting"}


def figures(server: Serving) -> dict[str, float]:
    """The metrics without labels; they must come soon."""
    begun = time.monotonic()
    status, _, body = server.ask("GET", "/metrics")
    assert status == 200 and time.monotonic() - begun < 2
    lines = [line.split() for line in body.decode().splitlines() if line[0] != "#" and "{" not in line]
    return {name.removeprefix("borealis_gguf_"): float(value) for name, value in lines}


def health(server: Serving) -> tuple[int, str]:
    begun = time.monotonic()
    status, _, body = server.ask("GET", "/health")
    assert time.monotonic() - begun < 2
    return status, json.loads(body)["status"]


def test_metrics_and_health_while_the_process_is_stopped(server: Serving) -> None:
    """More questions than there are threads; the figures are the last ones known."""
    server.post(CHAT, SHORT)
    before = figures(server)
    assert before["up"] == 1 and before["completion_tokens_total"] > 0
    child = psutil.Process(child_of(server))
    child.suspend()
    try:
        begun = time.monotonic()
        for _ in range(60):
            assert figures(server) == {**before, "up": 0}
        assert health(server) == (503, "restarting")
        assert time.monotonic() - begun < 8
    finally:
        child.resume()
    until(lambda: health(server) == (200, "ok") and figures(server)["up"] == 1)
    assert server.post(CHAT, SHORT)[0] == 200


def test_metrics_and_health_while_the_process_is_restarted(server: Serving) -> None:
    """The new process is stopped while it loads."""
    before, old = figures(server), child_of(server)
    os.kill(old, getattr(signal, "SIGKILL", signal.SIGTERM))
    until(lambda: health(server)[1] == "restarting" and child_of(server) != old)
    child = psutil.Process(child_of(server))
    child.suspend()
    try:
        begun = time.monotonic()
        for _ in range(60):
            now = figures(server)
            assert (now["up"], now["restarts_total"], now["active"]) == (0, before["restarts_total"] + 1, 0)
            assert health(server) == (503, "restarting")
        assert time.monotonic() - begun < 8
    finally:
        child.resume()
    until(lambda: health(server) == (200, "ok"), 30)
    assert figures(server)["up"] == 1


def test_an_end_while_the_process_is_restarted(server: Serving) -> None:
    with serving_of(server) as running:
        old = child_of(running)
        os.kill(old, getattr(signal, "SIGKILL", signal.SIGTERM))
        until(lambda: health(running)[1] == "restarting" and child_of(running) != old)
        child = psutil.Process(child_of(running))
        child.suspend()
        waiting = begin(running, LONG)
        begun = time.monotonic()
        running.server.should_exit = True
        status, _, body = read_reply(waiting)
        assert time.monotonic() - begun < 2
        assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def read_reply_after_head(wire: socket.socket) -> tuple[int, dict[str, str], bytes]:
    data = b""
    while piece := wire.recv(65536):
        data += piece
    return 200, {}, data


def test_crowds_get_what_each_would_get_alone(server: Serving) -> None:
    with serving_of(server, queue=64) as crowd:
        asked = [
            {"messages": [{"role": "user", "content": f"Tell til {i}"}], "max_tokens": 12, "temperature": 0}
            for i in range(12)
        ]
        alone = [json.loads(crowd.post(CHAT, one)[2])["choices"] for one in asked]
        together: dict[int, Any] = {}

        def ask(i: int) -> None:
            together[i] = json.loads(crowd.post(CHAT, asked[i])[2])["choices"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [together[i] for i in range(12)] == alone


def serving_of(server: Serving, **settings: Any) -> Any:
    model = server.server.service.model
    assert model is not None
    return serving(model.path, **settings)


def test_an_end_in_the_middle_of_answers(server: Serving) -> None:
    with serving_of(server) as running:
        wire, other = begin(running, {**LONG, "stream": True}), begin(running, LONG)
        until(lambda: running.stats()["active"] == 2)
        begun = time.monotonic()
        running.server.should_exit = True
        _, _, rest = read_reply_after_head(wire)
        status, _, body = read_reply(other)
    assert time.monotonic() - begun < 5
    assert b'"code":"stopping"' in rest
    assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
    with pytest.raises(OSError, match="refused"):
        running.connect()


def test_questions_before_the_model_is_loaded() -> None:
    listener, go = listen("127.0.0.1", 0), threading.Event()

    def load(progress: Any) -> Any:
        progress(0.25)
        go.wait(20)
        progress(0.5)
        raise AssertionError("an end stops the loading")

    server = Server(load, ServerSettings(page=None))
    running = Serving(server, listener.getsockname()[1])
    thread = threading.Thread(target=server.run_until_end, args=(listener,))
    thread.start()
    until(lambda: server.service.load_progress == 0.25)
    status, _, body = running.ask("GET", "/health")
    assert (status, json.loads(body)) == (503, {"status": "loading", "progress": 0.25})
    for reply in (running.post(CHAT, SHORT), running.ask("GET", "/v1/models")):
        assert (reply[0], json.loads(reply[2])["error"]["code"], reply[1]["retry-after"]) == (503, "loading", "1")
    assert running.ask("GET", "/metrics")[0] == 200
    server.should_exit = True
    go.set()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(("content", "error"), [(b"GGUF", InvalidInput), (None, BorealisError)])
def test_a_model_that_cannot_be_loaded(content: bytes | None, error: type[Exception], tmp_path: Path) -> None:
    from borealis_gguf import load

    model = tmp_path / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    server = Server(lambda progress: load(model, isolate=True), ServerSettings(page=None))
    with pytest.raises(error, match=r"model\.gguf"):
        server.run_until_end(listen("127.0.0.1", 0))


def test_a_port_that_is_taken(server: Serving) -> None:
    with pytest.raises(InvalidInput, match="cannot listen there"):
        listen("127.0.0.1", server.port)
    with pytest.raises(InvalidInput, match="not an address of this machine"):
        listen("no.such.host.invalid", 0)


def test_who_waits_is_told_that_there_is_hope(server: Serving) -> None:
    with serving_of(server, parallel=1, ping=0.05) as running, closing(begin(running, {**LONG, "stream": True})):
        waiting = running.connect()
        waiting.sendall(request("POST", CHAT, json.dumps({**SHORT, "stream": True}).encode()))
        seen = b""
        while b": still at work\n\n" not in seen:
            seen += waiting.recv(4096)
        waiting.close()


def test_nonsense_in_the_middle_of_an_answer(server: Serving) -> None:
    body = json.dumps({**LONG, "stream": True}).encode()
    with closing(server.connect()) as wire:
        wire.sendall(request("POST", CHAT, body, connection="keep-alive"))
        wire.sendall(b"\0\1\2 nonsense\r\n\r\n" * 10)
        until(lambda: busy(server) == 1)
    until(lambda: busy(server) == 0, 3)


@pytest.mark.parametrize("command", ["serve", "run", "chat"])
def test_a_model_too_large_is_refused_before_it_is_loaded(command: str, tmp_path: Path) -> None:
    """27b in float32: 108 GB of holes."""
    path = write_sparse(tmp_path / "altfor stor.gguf", GEMMA_27B, GGMLQuantizationType.F32)
    done = run(
        command, path, *(["Hei"] if command == "run" else ["--port", "0"] if command == "serve" else []), text=""
    )
    assert done.returncode == 2
    assert re.search(r"altfor stor\.gguf|needs [\d.]+ GB on CPU", done.stderr) and "are free" in done.stderr
    assert done.stderr.count("\n") == 1
