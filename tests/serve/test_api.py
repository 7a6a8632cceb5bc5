"""The server as OpenAI's own client sees it."""

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from borealis_gguf import Options, load

from ..generate.vision_goldens import IMAGES
from ..helpers.serving import Serving, serving
from ..helpers.vision_models import SEEING
from ..runtime.test_vision import made

NORWAY: list[Any] = [{"role": "user", "content": "Skriv om Norge."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "vaer",
        "description": "Været i en by",
        "parameters": {
            "type": "object",
            "properties": {"by": {"enum": ["Oslo", "Bergen"]}, "varsel": {"type": "boolean"}},
            "required": ["by", "varsel"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"navn": {"type": "string", "maxLength": 12}, "farge": {"enum": ["rød", "blå"]}},
    "required": ["navn", "farge"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(nano_q8: Path) -> Iterator[Serving]:
    with serving(nano_q8, parallel=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return server.client


@pytest.fixture(scope="module")
def expected(nano_q8: Path) -> str:
    """What the model answers to NORWAY, by itself."""
    with load(nano_q8, batch_invariant=True) as model:
        return model.chat(NORWAY, Options(max_tokens=24, seed=2)).text()


def test_an_answer_is_the_models_own(client: openai.OpenAI, expected: str) -> None:
    made = client.chat.completions.create(model="nano", messages=NORWAY, max_tokens=24, seed=2)
    assert made.object == "chat.completion"
    assert made.model == "nano-nb-7m-Q8_0"
    (choice,) = made.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", expected, "length")
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (17, 24, 41)


def test_a_stream_says_the_same(client: openai.OpenAI, expected: str) -> None:
    stream = client.chat.completions.create(
        model="nano", messages=NORWAY, max_tokens=24, seed=2, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (17, 24)
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_a_stream_as_it_is_on_the_wire(server: Serving) -> None:
    asked = {"messages": NORWAY, "max_tokens": 3, "seed": 2, "stream": True}
    status, headers, body = server.post("/v1/chat/completions", asked)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    lines = [line for line in body.decode().split("\r\n") if line.startswith("data: ")]
    assert lines[-1].rstrip() == "data: [DONE]"
    assert "usage" not in json.loads(lines[0][6:])


def test_several_answers_are_those_of_following_seeds(client: openai.OpenAI) -> None:
    together = client.chat.completions.create(model="nano", messages=NORWAY, max_tokens=12, seed=5, n=3)
    texts = [choice.message.content for choice in together.choices]
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    alone = [
        client.chat.completions.create(model="nano", messages=NORWAY, max_tokens=12, seed=seed) for seed in (5, 6, 7)
    ]
    assert texts == [one.choices[0].message.content for one in alone]
    assert len(set(texts)) == 3
    assert together.usage is not None
    assert (together.usage.prompt_tokens, together.usage.completion_tokens) == (17, 36)


def test_several_answers_stream_apart(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="nano", messages=NORWAY, max_tokens=12, seed=5, n=3, stream=True)
    texts, ended = ["", "", ""], []
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ended += [choice.index] if choice.finish_reason else []
    whole = client.chat.completions.create(model="nano", messages=NORWAY, max_tokens=12, seed=5, n=3)
    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(ended) == [0, 1, 2]


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="nano", messages=NORWAY, max_tokens=16, n=4)
    assert len({choice.message.content for choice in made.choices}) > 1


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, -(2**63)])
def test_any_seed_repeats(client: openai.OpenAI, seed: int) -> None:
    made = [client.chat.completions.create(model="nano", messages=NORWAY, max_tokens=8, seed=seed) for _ in range(2)]
    assert made[0].choices[0].message.content == made[1].choices[0].message.content


def test_stop_ends_the_answer(client: openai.OpenAI) -> None:
    def answer(**more: Any) -> Any:
        return client.chat.completions.create(model="nano", messages=NORWAY, max_tokens=60, temperature=0, **more)

    text = answer().choices[0].message.content
    assert " " in text
    first = answer(stop=" ").choices[0]
    assert (first.message.content, first.finish_reason) == (text.partition(" ")[0], "stop")
    assert answer(stop=["§§", " "]).choices[0].message.content == first.message.content


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="nano", messages=NORWAY, max_tokens=10, temperature=0, logprobs=True, top_logprobs=20
    )
    choice = made.choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert len(tokens) == 10
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == choice.message.content
    for token in tokens:
        assert token.logprob == token.top_logprobs[0].logprob  # temperature 0 takes the likeliest
        likely = [other.logprob for other in token.top_logprobs]
        assert likely == sorted(likely, reverse=True)
        assert 0.1 < sum(map(math.exp, likely)) <= 1.0001


def test_a_stream_has_the_same_logprobs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "nano", "messages": NORWAY, "max_tokens": 10, "seed": 3, "logprobs": True}
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    assert whole is not None
    streamed = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert [(token.token, token.logprob) for token in streamed] == [
        (token.token, token.logprob) for token in whole.content or []
    ]


def test_a_forced_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "vaer"}}
    asked: dict[str, Any] = {"model": "nano", "messages": NORWAY, "tools": [WEATHER], "seed": 1}
    asked["parallel_tool_calls"] = True  # allowed; it is one call all the same
    made = client.chat.completions.create(**asked, tool_choice=choice).choices[0]
    assert (made.finish_reason, made.message.content) == ("tool_calls", None)
    (call,) = made.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "vaer"
    arguments = json.loads(call.function.arguments)
    assert arguments["by"] in ("Oslo", "Bergen")
    assert isinstance(arguments["varsel"], bool)
    assert set(arguments) == {"by", "varsel"}
    calls = [
        (call.index, call.function.name, json.loads(call.function.arguments or ""))
        for chunk in client.chat.completions.create(**asked, tool_choice="required", stream=True)
        for call in chunk.choices[0].delta.tool_calls or []
        if call.function
    ]
    assert calls == [(0, "vaer", arguments)]
    with pytest.raises(openai.BadRequestError, match="response_format: cannot be asked for together with tools"):
        client.chat.completions.create(**asked, response_format={"type": "json_object"})


def test_the_result_of_a_tool_goes_back(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "vaer", "arguments": '{"by":"Oslo"}'}}
    messages: Any = [
        {"role": "developer", "content": "Svar kort."},
        *NORWAY,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sol, 20 grader"},
    ]
    made = client.chat.completions.create(model="nano", messages=messages, tools=[WEATHER], tool_choice="none", seed=1)
    assert made.choices[0].message.tool_calls is None
    assert made.usage is not None
    assert made.usage.prompt_tokens > 60


def test_an_answer_follows_its_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "ting", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        made = client.chat.completions.create(model="nano", messages=NORWAY, response_format=form, seed=seed)
        found = json.loads(made.choices[0].message.content or "")
        assert set(found) == {"navn", "farge"}
        assert len(found["navn"].replace("\ufffd", "")) <= 12
        assert found["farge"] in ("rød", "blå")


def test_json_object_is_an_object(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="nano", messages=NORWAY, response_format={"type": "json_object"}, seed=4, max_tokens=200
    )
    text = made.choices[0].message.content or ""
    assert text.lstrip().startswith("{")
    if made.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_completions_of_texts_and_ids(client: openai.OpenAI, nano_q8: Path) -> None:
    with load(nano_q8, batch_invariant=True) as model:
        ids = [2, *model.tokenize("Norge er")]
        expected = model.complete("Norge er", Options(max_tokens=6, seed=1)).text()
    made = client.completions.create(model="nano", prompt=["Norge er", "Oslo"], max_tokens=6, seed=1)
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.choices[0].text == expected
    assert made.usage is not None
    assert 6 < made.usage.completion_tokens <= 12
    assert client.completions.create(model="nano", prompt=ids, max_tokens=6, seed=1).choices[0].text == expected
    several = client.completions.create(model="nano", prompt=[ids, ids], n=2, max_tokens=6, seed=1)
    assert [several.choices[i].text for i in (0, 2)] == [expected, expected]
    assert several.choices[1].text == several.choices[3].text != expected


def test_completions_echo_stream_and_default_length(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "nano", "prompt": "Norge er", "seed": 1, "echo": True}
    whole = client.completions.create(**asked)
    assert whole.choices[0].text.startswith("Norge er")
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 16
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


def test_legacy_logprobs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "nano", "prompt": "Norge er", "max_tokens": 8, "temperature": 0, "logprobs": 3}
    choice = client.completions.create(**asked).choices[0]
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.text_offset is not None
    assert told.token_logprobs is not None
    assert "".join(told.tokens) == choice.text
    assert [
        choice.text[at:][: len(token)] for at, token in zip(told.text_offset, told.tokens, strict=True)
    ] == told.tokens
    for table, token, logprob in zip(told.top_logprobs or [], told.tokens, told.token_logprobs, strict=True):
        assert len(table) == 3
        assert max(table.values()) == table[token] == logprob < 0
    offsets: list[int] = []
    for chunk in client.completions.create(**asked, stream=True):
        if chunk.choices[0].logprobs is not None:
            offsets += chunk.choices[0].logprobs.text_offset or []
    assert offsets == told.text_offset


def test_embeddings_have_length_one_and_survive_base64(client: openai.OpenAI, server: Serving) -> None:
    texts = ["Oslo er hovedstaden.", "Hovedstaden er Oslo.", "1 2 3"]
    made = client.embeddings.create(model="nano", input=texts)  # the client asks for base64
    vectors = np.array([one.embedding for one in made.data], np.float32)
    assert vectors.shape == (3, 256)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert made.usage.prompt_tokens == made.usage.total_tokens > 10
    floats = client.embeddings.create(model="nano", input=texts[0], encoding_format="float")
    assert np.array_equal(np.array(floats.data[0].embedding, np.float32), vectors[0])
    _, _, body = server.post("/v1/embeddings", {"input": texts[0], "encoding_format": "base64"})
    raw = base64.b64decode(json.loads(body)["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(raw, "<f4"), vectors[0])
    ids = client.embeddings.create(model="nano", input=[[5, 6, 7], [5, 6]], dimensions=256)
    assert ids.usage.prompt_tokens == 5


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("nano-nb-7m-Q8_0", "model", "borealis-gguf")
    assert model.model_extra == {"meta": {"vision": False, "context": 2048}}
    assert client.models.retrieve("nano-nb-7m-Q8_0") == model
    with pytest.raises(openai.NotFoundError, match="one model here"):
        client.models.retrieve("gpt-9")


def test_errors_are_those_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="nano", messages=NORWAY, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    long: list[Any] = [{"role": "user", "content": "Norge " * 3000}]
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model="nano", messages=long)
    with pytest.raises(openai.BadRequestError, match="context"):  # before the stream begins
        client.chat.completions.create(model="nano", messages=long, stream=True)


def test_metrics_count(server: Serving, client: openai.OpenAI) -> None:
    def metrics() -> dict[str, float]:
        status, headers, body = server.ask("GET", "/metrics")
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    before = metrics()
    client.chat.completions.create(model="nano", messages=NORWAY, max_tokens=7, seed=2)
    after = metrics()
    grown = {name: round(after[name] - before.get(name, 0), 6) for name in after}
    assert grown['borealis_gguf_http_requests_total{route="/v1/chat/completions",status="200"}'] == 1
    assert grown["borealis_gguf_completion_tokens_total"] == 7
    assert grown["borealis_gguf_prompt_tokens_total"] == 17
    assert grown["borealis_gguf_completion_seconds_total"] > 0
    assert after["borealis_gguf_active"] == after["borealis_gguf_waiting"] == after["borealis_gguf_restarts_total"] == 0


def test_pictures_are_seen(tmp_path: Path) -> None:
    model = made(SEEING[0], tmp_path)
    picture = IMAGES / "exact.png"
    with load(model, batch_invariant=True) as alone:
        parts = [{"type": "image", "path": str(picture)}, {"type": "text", "text": "Kva?"}]
        expected = alone.chat([{"role": "user", "content": parts}], Options(max_tokens=8, seed=1)).text()

    def asked(url: str) -> Any:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Kva?"}]
        return {"model": "m", "messages": [{"role": "user", "content": parts}], "max_tokens": 8, "seed": 1}

    def url(data: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"

    with serving(model) as server:
        client = server.client
        (described,) = client.models.list()
        assert described.model_extra == {"meta": {"vision": True, "context": 8192}}
        answer = client.chat.completions.create(**asked(url(picture.read_bytes())))
        assert answer.choices[0].message.content == expected
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="a damaged image"):
                client.chat.completions.create(**asked(url(picture.read_bytes()[:-20])), stream=stream)
        with pytest.raises(openai.BadRequestError, match="not fetched"):
            client.chat.completions.create(**asked("https://example.com/a.png"))
