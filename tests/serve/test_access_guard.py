"""Who may ask, from where, and how much: requests as no polite client sends them."""

import json
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from borealis_gguf.runtime.serve.connection_timeout import TimeoutConnection
from borealis_gguf.runtime.serve.static_files import read_page_files

from ..helpers.serving import Serving, read_reply, request, serving, until

KEY = "hemmeleg-nokkel"
CHAT = "/v1/chat/completions"
NORWAY = {"messages": [{"role": "user", "content": "Skriv om Norge."}], "max_tokens": 3}
INDEX = b"<!doctype html><title>Borealis</title>"


@pytest.fixture(scope="module")
def server(nano_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    page = tmp_path_factory.mktemp("page")
    (page / "index.html").write_bytes(INDEX)
    (page / "lib").mkdir()
    (page / "lib" / "side.js").write_bytes(b"'use strict'")
    (page / "notes.txt").write_bytes(b"not for others")
    with serving(nano_q8, page=page, hosts=["modell.lan"], body_limit=100_000, body_idle=0.5) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(nano_q8: Path) -> Iterator[Serving]:
    """With a key, and one page that may ask."""
    with serving(nano_q8, key=KEY, origins=["https://app.example"], page=None) as running:
        yield running


def error(reply: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    assert reply[1]["content-type"] == "application/json"
    found = json.loads(reply[2])["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_the_key(guarded: Serving) -> None:
    for path in ("/v1/models", "/metrics"):
        status, headers, _ = reply = guarded.ask("GET", path)
        assert (status, headers["www-authenticate"], error(reply)["code"]) == (401, "Bearer", "invalid_api_key")
        assert guarded.ask("GET", path, authorization=f"Bearer {KEY}x")[0] == 401
        assert guarded.ask("GET", path, authorization=f"Bearer {KEY[:-1]}")[0] == 401
        assert guarded.ask("GET", path, authorization=f"Basic {KEY}")[0] == 401
        assert guarded.ask("GET", path, authorization="Bearer æøå")[0] == 401
        assert guarded.ask("GET", path, authorization=f"Bearer {KEY}")[0] == 200
    assert guarded.post(CHAT, NORWAY)[0] == 401
    assert guarded.ask("GET", "/health")[0] == 200
    with pytest.raises(openai.AuthenticationError):
        guarded.client.models.list()
    assert len(list(guarded.client.with_options(api_key=KEY).models.list())) == 1


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8080", "192.168.1.7", "modell.lan"]
)
def test_names_of_this_machine(server: Serving, host: str) -> None:
    assert server.ask("GET", "/health", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a@localhost"]
)
def test_a_page_that_resolves_its_own_name_to_this_machine(server: Serving, host: str) -> None:
    for path in ("/", "/health", "/v1/models"):
        status, _, body = server.ask("GET", path, host=host)
        assert status == 421 or (status, body) == (400, b"Invalid HTTP request received.")


def test_no_host_and_two(server: Serving) -> None:
    for head in (b"GET /health HTTP/1.0\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n"):
        with closing(server.connect()) as wire:
            wire.sendall(head)
            assert read_reply(wire)[0] in (400, 421)


def test_pages_of_others(server: Serving) -> None:
    own = f"http://127.0.0.1:{server.port}"
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
        reply = server.post(CHAT, NORWAY, origin=origin)
        assert (reply[0], error(reply)["code"]) == (403, "origin")
        assert "access-control-allow-origin" not in reply[1]
    assert server.post(CHAT, NORWAY, origin=own, host=own[7:])[0] == 200
    preflight = {"origin": "https://evil.example", "access_control_request_method": "POST"}
    assert server.ask("OPTIONS", CHAT, **preflight)[0] == 403
    # What a page can send without asking before:
    assert server.ask("POST", CHAT, json.dumps(NORWAY).encode(), content_type="text/plain")[0] == 415


def test_a_page_that_is_let_in(guarded: Serving) -> None:
    page = {"origin": "https://app.example", "authorization": f"Bearer {KEY}"}
    status, headers, _ = guarded.post(CHAT, NORWAY, **page)
    assert (status, headers["access-control-allow-origin"], headers["vary"]) == (200, "https://app.example", "Origin")
    wanted = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,content-type"}
    status, headers, body = guarded.ask("OPTIONS", CHAT, origin="https://app.example", **wanted)
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == "https://app.example"
    assert headers["access-control-allow-headers"] == "authorization,content-type"
    assert headers["access-control-allow-methods"] == "GET, POST"
    # It can read why it is refused.
    status, headers, _ = guarded.post(CHAT, NORWAY, origin="https://app.example")
    assert (status, headers["access-control-allow-origin"]) == (401, "https://app.example")
    assert guarded.ask("OPTIONS", CHAT, origin="https://app.example.evil", **wanted)[0] == 403


def test_the_page_and_nothing_beside_it(server: Serving, guarded: Serving) -> None:
    status, headers, body = server.ask("GET", "/")
    assert (status, body, headers["content-type"]) == (200, INDEX, "text/html; charset=utf-8")
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert server.ask("GET", "/", if_none_match=headers["etag"])[::2] == (304, b"")
    assert server.ask("GET", "/lib/side.js")[1]["content-type"] == "text/javascript; charset=utf-8"
    for path in ("/notes.txt", "/lib/", "/lib/../index.html", "/..%2f..%2fapp.py", "/%2e%2e/app.py", "//etc/passwd"):
        assert server.ask("GET", path)[0] == 404, path
    assert guarded.ask("GET", "/")[0] == 404
    assert read_page_files(Path("/nowhere")) == {}


def test_all_answers_are_kept_from_other_pages(server: Serving) -> None:
    for reply in (server.ask("GET", "/health"), server.ask("GET", "/nothing"), server.post(CHAT, NORWAY)):
        headers = reply[1]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert headers["x-request-id"].startswith("req_")
        assert "server" not in headers
        assert not any(name.startswith("access-control") for name in headers)


def test_paths_and_methods(server: Serving) -> None:
    assert error(server.ask("GET", "/v1/nothing"))["code"] == "not_found"
    status, headers, _ = reply = server.ask("GET", CHAT)
    assert (status, headers["allow"], error(reply)["code"]) == (405, "POST", "method_not_allowed")
    assert server.ask("DELETE", "/v1/models")[0] == 405
    assert server.ask("HEAD", "/health")[::2] == (200, b"")
    assert server.ask("GET", "/v1/models/")[0] == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "must be a JSON object, not an array"),
        (b'"x"', "must be a JSON object, not a text"),
        (b'{"temperature": NaN}', "NaN is not JSON"),
        (b'{"temperature": -Infinity}', "-Infinity is not JSON"),
        (b'{"temperature": 1e999}', "1e999' is too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not"),
        (b'{"messages": "\xff"}', "not UTF-8: byte 14"),
        ('{"messages": "æ"}'.encode("utf-16"), "not UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 deep"),
        (b'{"a":' + b"[" * 90_000, "deep"),
        (b'{"messages": [], "n": 1} x', "not JSON"),
    ],
)
def test_bodies_that_are_no_requests(server: Serving, body: bytes, message: str) -> None:
    reply = server.ask("POST", CHAT, body)
    assert reply[0] == 400
    assert message in error(reply)["message"]


def test_a_whole_surrogate_pair_is_a_character(server: Serving) -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}], "max_tokens": 1}'
    assert server.ask("POST", CHAT, body)[0] == 200


def test_types_of_bodies(server: Serving) -> None:
    body = json.dumps(NORWAY).encode()
    assert server.ask("POST", CHAT, body, content_type="application/json; charset=UTF-8")[0] == 200
    for kind in ("application/json; charset=latin-1", "multipart/form-data", ""):
        assert server.ask("POST", CHAT, body, content_type=kind)[0] == 415
    assert server.ask("POST", CHAT, body, content_encoding="gzip")[0] == 415


def test_a_body_too_long_is_refused_before_it_comes(server: Serving) -> None:
    with closing(server.connect()) as wire:
        wire.sendall(request("POST", CHAT, None, content_type="application/json", content_length=str(10_000_000)))
        reply = read_reply(wire)
    assert (reply[0], error(reply)["code"]) == (413, "body_too_large")
    body = json.dumps({**NORWAY, "user": "x" * 10_000_000}).encode()
    with pytest.raises(openai.APIStatusError) as caught:
        server.client.chat.completions.create(model="x" * 300_000, messages=[{"role": "user", "content": "Hei"}])
    assert caught.value.status_code == 413
    assert len(body) > 10_000_000
    assert server.ask("POST", CHAT, body)[0] == 413


def test_a_body_too_long_in_pieces(server: Serving) -> None:
    with closing(server.connect()) as wire:
        wire.sendall(request("POST", CHAT, None, content_type="application/json", transfer_encoding="chunked"))
        piece = b"ffff\r\n" + b" " * 0xFFFF + b"\r\n"
        wire.sendall(piece * 2)  # never ended
        assert wire.recv(12) == b"HTTP/1.1 413"
    assert server.server.service.held_bytes == 0


def test_a_length_that_lies(server: Serving) -> None:
    body = json.dumps(NORWAY).encode()
    with closing(server.connect()) as wire:  # promised more than came
        wire.sendall(request("POST", CHAT, body, content_length=str(len(body) + 5)))
        reply = read_reply(wire)
    assert (reply[0], error(reply)["message"]) == (408, "the body comes too slowly")
    with closing(server.connect()) as wire:  # and less
        wire.sendall(request("POST", CHAT, body, content_length=str(len(body) - 5), connection="keep-alive"))
        assert wire.recv(12) == b"HTTP/1.1 400"
    for length in ("-1", "1_0", "0x10", "9" * 30):
        with closing(server.connect()) as wire:
            wire.sendall(request("POST", CHAT, body, content_length=length))
            assert read_reply(wire)[0] in (400, 413)


def test_what_is_no_http(server: Serving) -> None:
    for nonsense in (b"\x16\x03\x01\x00\xa5\x01\x00\x00", b"GET / HTTP/9\r\n\r\n", b"\r\n" * 50 + b"\0\r\n\r\n"):
        with closing(server.connect()) as wire:
            wire.sendall(nonsense)
            assert wire.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    with closing(server.connect()) as wire:
        wire.sendall(b"GET /health HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert wire.recv(100)[:12] == b"HTTP/1.1 400"
    assert server.ask("GET", "/health")[0] == 200


def test_a_header_that_never_ends(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimeoutConnection, "header_seconds", 0.3)
    with closing(server.connect()) as silent, closing(server.connect()) as slow:
        begun = time.monotonic()
        for _ in range(100):
            try:
                slow.sendall(b"GET /health HTTP/1.1\r\nX: x")
            except OSError:
                break
            time.sleep(0.02)
        assert time.monotonic() - begun < 1.5
        with suppress(ConnectionResetError):
            assert silent.recv(1) == b""


def test_bodies_held_together(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    service = server.server.service
    monkeypatch.setattr(service, "held_bytes", 8 * 100_000 - 10)
    status, headers, _ = server.post(CHAT, NORWAY)
    assert (status, headers["retry-after"]) == (429, "1")
    until(lambda: service.held_bytes == 8 * 100_000 - 10)
