"""With asyncio the event loop goes on, whatever waits for the model."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from borealis_gguf.runtime.conversation import Conversation
from borealis_gguf.runtime.events import Finished, ModelInfo, Options, Text, Tool, Usage
from borealis_gguf.runtime.model import Model, aload, load

from ..helpers.asking import messages

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Hei"}]
CALLED: list[dict[str, Any]] = [
    *ASKED,
    {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "name": "vaer", "arguments": "{}"}]},
]


class Late:
    """A backend in which everything takes until the event loop has gone on."""

    info = ModelInfo(9, 1, False, True)

    def __init__(self) -> None:
        self.gone_on = threading.Event()
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def wait(*_: Any) -> Any:
            assert self.gone_on.wait(10), f"{name} holds up the event loop"
            self.asked.append(name)
            restored = {"messages": ASKED, "overflow": "roll", "notice": ""}
            return {"restore": restored, "tokenize": [7], "detokenize": "x"}.get(name)

        return wait

    def start(self, ask: Any, sink: Callable[[Any], None]) -> Callable[[], None]:
        self.__getattr__("start")()
        sink(Text("Ja"))
        sink(Finished("stop", Usage()))
        return lambda: None


Way = Callable[[Model], Awaitable[Any]]


async def entered(model: Model) -> None:
    async with model:
        pass


WAYS: dict[str, tuple[Way, str]] = {
    "Model.achat": (lambda m: m.achat(ASKED), "start"),
    "Model.acomplete": (lambda m: m.acomplete("Hei"), "start"),
    "Model.aembed": (lambda m: m.aembed(["Hei"]), "embed"),
    "Model.atokenize": (lambda m: m.atokenize("Hei"), "tokenize"),
    "Model.adetokenize": (lambda m: m.adetokenize([7]), "detokenize"),
    "Model.astats": (lambda m: m.astats(), "stats"),
    "Model.aload_conversation": (lambda m: m.aload_conversation("x"), "restore"),
    "Model.aclose": (lambda m: m.aclose(), "close"),
    "Model.__aexit__": (entered, "close"),
    "Conversation.asend": (lambda m: Conversation(m).asend("Hei"), "start"),
    "Conversation.areply": (lambda m: Conversation(m, CALLED).areply({"c": "sol"}), "start"),
    "Conversation.aregenerate": (lambda m: Conversation(m, ASKED).aregenerate(), "start"),
    "Conversation.asave": (lambda m: Conversation(m).asave("x"), "save"),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_event_loop_goes_on(name: str) -> None:
    backend: Any = Late()
    way, asked = WAYS[name]

    async def both() -> Any:
        asyncio.get_running_loop().call_later(0.01, backend.gone_on.set)
        return await way(Model(Path("x"), backend))

    found = asyncio.run(both())
    assert backend.asked == [asked]
    if asked == "start":
        assert found.text() == "Ja"


def test_every_way_is_tried() -> None:
    """Each has its counterpart, with the same arguments."""
    for kind in (Model, Conversation):
        mine = {name for name, found in vars(kind).items() if inspect.iscoroutinefunction(found)}
        assert mine - {"__aenter__"} == {name.partition(".")[2] for name in WAYS if name.startswith(kind.__name__)}
        for name in mine - {"__aenter__", "__aexit__"}:
            ours, theirs = (inspect.signature(getattr(kind, each)).parameters for each in (name, name[1:]))
            assert [*ours.values()] == [each for each in theirs.values() if each.name != "on_end"]


def test_a_real_model(nano_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as without asyncio, of a model in a process of its own."""
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path / "cache"))
    loading: dict[str, Any] = {"context": 512, "threads": 1, "seed": 1}
    schema = {"type": "object", "properties": {"stad": {"enum": ["Oslo"]}}, "required": ["stad"]}
    short = Options(max_tokens=6)
    tool = Options(tools=[Tool("vaer", "", schema)], tool_choice="required", max_tokens=100)

    async def talk() -> tuple[Any, ...]:
        async with await aload(nano_q8, isolate=True, **loading) as model:
            conversation = model.conversation(options=short)
            said = await (await conversation.asend("Hei")).result()
            assert await (await conversation.aregenerate()).result() == said
            await conversation.asave(tmp_path / "a.state")
            again = await model.aload_conversation(tmp_path / "a.state")
            assert again.messages == conversation.messages
            completed = await (await model.acomplete("Norge er", short)).result()
            ids = await model.atokenize("Norge")
            assert await model.adetokenize(ids) == "Norge"
            assert (await model.astats())["requests_total"] == 3
            vectors, count = await model.aembed(["Norge"])
            await (await conversation.asend("Vêret?", options=tool)).result()
            (call,) = conversation.messages[-1]["tool_calls"]
            replied = await (await conversation.areply({call["id"]: "sol"})).result()
            return said, completed, ids, vectors, count, replied

    said, completed, ids, vectors, count, replied = asyncio.run(talk())
    with load(nano_q8, **loading) as model:
        assert model.chat(messages("Hei"), short).text() == said != ""
        assert model.complete("Norge er", short).text() == completed != ""
        assert model.tokenize("Norge") == ids
        same, tokens = model.embed(["Norge"])
        assert np.array_equal(vectors, same) and count == tokens and replied != ""
