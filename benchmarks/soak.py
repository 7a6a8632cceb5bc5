"""A thousand requests of random kind from 16 clients, some of whom go away: is every answer the one it gets alone?

python benchmarks/soak.py MODEL.gguf [--requests 1000] [--clients 16] [--parallel 4] [--seed 1] [--json FILE]

A model with its mmproj beside it is asked about pictures too. Every request is asked once alone first, greedily. Then
all clients ask at random; one in five breaks off, before the answer or in the middle of it, and one in twenty asks what
must be refused. Ends with 1 if an answer differs, an error is not an intended one, or memory grows after the first 200
requests (--early).
"""

import argparse
import asyncio
import base64
import json
import random
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import records

PLACES = ("Oslo", "Bergen", "Tromsø", "Røros", "Ålesund", "Hammerfest", "Bodø", "Sørfold")
STORY = "".join(f"{n}. I bygda nummer {n * n} bur det {n * 37} menneske som likar å fiske. " for n in range(1, 40))
GROWTH = 0.03
"""Of the memory after the early requests: allocators round up."""
LOWEST = 8 << 20
LOGPROBS = {"logprobs": True, "top_logprobs": 3}


@dataclass(frozen=True)
class Question:
    """A request and whether it can stream."""

    path: str
    body: dict[str, Any]
    streams: bool = True


@dataclass
class Tally:
    """What happened."""

    same: int = 0
    broken_off: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)


def questions(sees: bool) -> list[Question]:
    """Of every kind some; long and short prompts, with common beginnings."""
    asked = []
    for n, place in enumerate(PLACES):
        chat = [
            {"role": "system", "content": STORY[: 300 * (n % 4)] + "Svar kort."},
            {"role": "user", "content": place},
        ]
        greedy = {"temperature": 0, "max_tokens": 16 + 8 * n}
        asked.append(Question("/v1/chat/completions", {"messages": chat, **greedy}))
        asked.append(Question("/v1/chat/completions", {"messages": chat, **greedy, "n": 2}, streams=False))
        asked.append(Question("/v1/completions", {"prompt": STORY[: 200 * n + 50] + place, **greedy}))
        asked.append(Question("/v1/chat/completions", {"messages": chat, **greedy, **LOGPROBS}, streams=False))
        if sees:
            picture = {"type": "image_url", "image_url": {"url": png(n)}}
            looking = [{"role": "user", "content": [picture, {"type": "text", "text": place}]}]
            asked.append(Question("/v1/chat/completions", {"messages": looking, **greedy}))
        schema = {"type": "object", "properties": {"stad": {"enum": list(PLACES)}}, "required": ["stad"]}
        form = {"type": "json_schema", "json_schema": {"name": "stad", "schema": schema}}
        asked.append(Question("/v1/chat/completions", {"messages": chat, **greedy, "response_format": form}))
        tool = {"type": "function", "function": {"name": "vaer", "parameters": schema}}
        calling = {"tools": [tool], "tool_choice": "required", "max_tokens": 60, "temperature": 0}
        asked.append(Question("/v1/chat/completions", {"messages": chat, **calling}, streams=False))
        embed = {"input": [place, STORY[:200]], "encoding_format": "float"}
        asked.append(Question("/v1/embeddings", embed, streams=False))
    return asked


def png(n: int) -> str:
    """A picture of 8 x 8 grey squares, as a data URL."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((40 * n * x + 30 * y) % 256 for x in range(8)) for y in range(8))
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")).decode()


REFUSED = (
    ("/v1/chat/completions", b'{"messages": ', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "robot", "content": "x"}]}', 400),
    ("/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "ja " * 9000}]}).encode(), 400),
    ("/v1/completions", b'{"prompt": "x", "temperature": "hot"}', 400),
    ("/v1/nothing", b"{}", 404),
)


def essence(body: dict[str, Any]) -> Any:
    """What of an answer must be the same each time."""
    if body["object"] == "list":
        return [[round(x, 3) for x in row["embedding"]] for row in body["data"]]
    said = []
    for choice in body["choices"]:
        message = choice.get("message", choice)
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        tokens = (choice.get("logprobs") or {}).get("content") or ()
        likely = [(token["token"], round(token["logprob"], 3), len(token["top_logprobs"])) for token in tokens]
        said.append((message.get("content", message.get("text")), calls, choice["finish_reason"], likely))
    return said


class Soak:
    """The server's address and what each question is answered with alone."""

    def __init__(self, client: httpx.AsyncClient, model: str, sees: bool, pids: list[int], every: int) -> None:
        self.client, self.model, self.pids, self.every = client, model, pids, every
        self.asked = questions(sees)
        self.alone: list[Any] = []
        self.tally = Tally()
        self.done = 0

    async def learn(self) -> None:
        """Ask everything once, one after the other."""
        for question in self.asked:
            answer = await self.client.post(question.path, json={"model": self.model, **question.body})
            answer.raise_for_status()
            self.alone.append(essence(answer.json()))

    async def client_loop(self, dice: random.Random, left: list[int]) -> None:
        """One client: asks until nothing is left to ask."""
        while left:
            left.pop()
            at, fate = dice.randrange(len(self.asked)), dice.random()
            try:
                if fate < 0.05:
                    await self.refused(dice)
                elif fate < 0.15:
                    await self.leave_early(at, dice)
                elif self.asked[at].streams and fate < 0.6:
                    await self.stream(at, dice if fate < 0.25 else None)
                else:
                    self.compare(at, await self.post(at))
            except httpx.HTTPError as error:
                self.tally.wrong.append(f"{self.asked[at].path}: {error!r}")
            self.done += 1
            if self.done % self.every == 0:
                self.tally.memory.append((self.done, sum(map(resident, self.pids))))

    def compare(self, at: int, found: Any) -> None:
        if found == self.alone[at]:
            self.tally.same += 1
        else:
            self.tally.wrong.append(f"{self.asked[at].path} {at}: {found!r:.200} instead of {self.alone[at]!r:.200}")

    async def refused(self, dice: random.Random) -> None:
        path, body, status = dice.choice(REFUSED)
        answer = await self.client.post(path, content=body, headers={"content-type": "application/json"})
        if answer.status_code == status and "error" in answer.json():
            self.tally.refused += 1
        else:
            self.tally.wrong.append(f"{path} {body[:60]!r}: {answer.status_code} {answer.text[:200]}")

    async def post(self, at: int) -> Any:
        """What of the answer must be the same, or the text of an error."""
        answer = await self.client.post(self.asked[at].path, json={"model": self.model, **self.asked[at].body})
        return essence(answer.json()) if answer.is_success else answer.text

    async def leave_early(self, at: int, dice: random.Random) -> None:
        """Break the connection while the answer is awaited; one that comes sooner must be right."""
        try:
            found = await asyncio.wait_for(self.post(at), dice.uniform(0.001, 0.1))
        except (TimeoutError, asyncio.TimeoutError):
            self.tally.broken_off += 1
        else:
            self.compare(at, found)

    async def stream(self, at: int, breaking: random.Random | None) -> None:
        """Read a stream to its end, or with `breaking` some way."""
        question = self.asked[at]
        text, reason, most = "", None, breaking.randrange(1, 12) if breaking else None
        body = {"model": self.model, **question.body, "stream": True}
        async with self.client.stream("POST", question.path, json=body) as answer:
            answer.raise_for_status()
            seen = 0
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                (choice,) = json.loads(line[6:])["choices"] or [{}]
                text += choice.get("delta", {}).get("content") or choice.get("text") or ""
                reason = choice.get("finish_reason") or reason
                seen += 1
                if most is not None and seen >= most:
                    break
        whole, _, end, _ = self.alone[at][0]
        if most is not None and reason is None:
            self.tally.broken_off += 1
            if not whole.startswith(text):
                self.tally.wrong.append(f"{question.path} {at}: {text!r} does not begin {whole!r:.200}")
        else:
            self.compare(at, self.alone[at] if (text, reason) == (whole, end) else (text, reason))


def resident(pid: int) -> int:
    """Bytes of memory a process has; 0 where the system does not tell."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return []
    return [found for child in map(int, listed) for found in (child, *children(child))]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def soak(arguments: argparse.Namespace, server: "subprocess.Popen[bytes]", port: int) -> Tally:
    limits = httpx.Limits(max_connections=arguments.clients * 2)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits) as client:
        deadline = time.monotonic() + 60
        while True:
            try:
                if (await client.get("/health")).is_success:
                    break
            except httpx.TransportError:
                pass
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("the server did not start")
            await asyncio.sleep(0.1)
        model = (await client.get("/v1/models")).json()["data"][0]
        pids = [server.pid, *children(server.pid)]
        run = Soak(client, model["id"], model["meta"]["vision"], pids, max(1, arguments.early // 4))
        await run.learn()
        left = list(range(arguments.requests))
        dice = [random.Random(arguments.seed * 1000 + n) for n in range(arguments.clients)]
        await asyncio.gather(*(run.client_loop(each, left) for each in dice))
        return run.tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--early", type=int, default=200, help="requests after which memory may not grow")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    records.add_option(parser, "soak")
    arguments = parser.parse_args()
    if arguments.requests < arguments.early + max(1, arguments.early // 4):
        parser.error("with so few requests nothing can be seen after --early of them")
    port = free_port()
    code = "from borealis_gguf.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(arguments.model), "--port", str(port), "--quiet"]
    command += ["--threads", "1"]  # small models are not faster with more, and far slower on a busy machine
    started = time.monotonic()
    with subprocess.Popen([*command, "--parallel", str(arguments.parallel), "--queue", "64"]) as server:
        try:
            tally = asyncio.run(soak(arguments, server, port))
        finally:
            server.terminate()
    early = max(size for done, size in tally.memory if done <= arguments.early)
    late = max(size for done, size in tally.memory if done > arguments.early)
    figures = {
        "requests": arguments.requests, "clients": arguments.clients, "equal": tally.same,
        "broken off": tally.broken_off, "refused": tally.refused, "wrong": len(tally.wrong),
        "seconds": round(time.monotonic() - started), "memory early": early, "memory late": late,
    }  # fmt: skip
    print(f"{tally.same} answers equal, {tally.broken_off} broken off, {tally.refused} refused as they must be, "
          f"{len(tally.wrong)} wrong, in {figures['seconds']} s")  # fmt: skip
    for wrong in tally.wrong[:20]:
        print("  ", wrong)
    print(f"memory after {arguments.early} requests {early / 1e6:.0f} MB, later at most {late / 1e6:.0f} MB")
    megabytes = [records.row("memory", side, "MB", [size / 1e6]) for side, size in (("early", early), ("late", late))]
    records.save(arguments, megabytes, {key: figure for key, figure in figures.items() if "memory" not in key})
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(bool(tally.wrong) or late > early + max(LOWEST, GROWTH * early))


if __name__ == "__main__":
    sys.exit(main())
