"""Bodies of requests: each field with its limits, named when it is wrong, and never a crash."""

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from borealis_gguf import Tool
from borealis_gguf.runtime.events import Options
from borealis_gguf.runtime.prompting.sampling_settings import OPENAI_RANGES
from borealis_gguf.runtime.serve.error_response import ErrorResponse
from borealis_gguf.runtime.serve.metrics import Metrics
from borealis_gguf.runtime.serve.request_parsing import (
    parse_chat_request,
    parse_completion_request,
    parse_embedding_request,
)
from borealis_gguf.runtime.serve.service_state import PAGE

from ..helpers.paths import DATA

IMAGES = DATA / "images"
USER = {"role": "user", "content": "Hei"}
TOOL = {"type": "function", "function": {"name": "vaer", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "vaer", "arguments": "{}"}}
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()


def chat(vision: bool = False, **fields: Any) -> Any:
    return parse_chat_request(json.dumps({"messages": [USER], **fields}).encode(), vision)


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


WRONG_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hei"}, "messages"),
    ({"messages": ["Hei"]}, "messages[0]"),
    ({"messages": [USER] * 10_001}, "messages"),
    ({"messages": [USER, {"content": "Hei"}]}, "messages[1].role"),
    ({"messages": [{"role": "function", "content": "Hei"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "system", "content": {}}]}, "messages[0].content"),
    (user({"type": "video"}), "messages[0].content[0].type"),
    (user({"type": "text"}), "messages[0].content[0].text"),
    (user({"text": "Hei"}), "messages[0].content[0].type"),
    (user(image(None)), "messages[0].content[0].image_url.url"),
    (user(image("https://example.com/a.png")), "messages[0].content[0].image_url.url"),
    (user(image("file:///etc/passwd")), "messages[0].content[0].image_url.url"),
    (user(image("data:image/gif;base64,AAAA")), "messages[0].content[0].image_url.url"),
    (user(image("data:image/png,AAAA")), "messages[0].content[0].image_url.url"),
    (user(image("data:image/png;base64,AAA")), "messages[0].content[0].image_url.url"),
    (user(image("data:image/png;base64,AA A=")), "messages[0].content[0].image_url.url"),
    (user(image("data:image/png;base64,ÅÅÅÅ")), "messages[0].content[0].image_url.url"),
    (user({"type": "image_url", "image_url": "x"}), "messages[0].content[0].image_url"),
    (user(*[image(f"data:image/png;base64,{PIXEL}")] * 17), "messages"),
    ({"messages": [{"role": "system", "content": [image("data:,")]}]}, "messages[0].content[0].type"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
    ({"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "c2"}]}, "messages[1].tool_call_id"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls[0].function"),
    ({"model": 4}, "model"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"min_p": -1}, "min_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": -1}, "top_k"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": [1]}, "frequency_penalty"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.0}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": True}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x", 1]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 1001}, "stop"),
    ({"stream": "true"}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"logprobs": 1}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "vær"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "auto"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "x", "parameters": 1}}]}, "tools[0].function.parameters"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [TOOL] * 129}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "vaer", "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [TOOL]}, "tool_choice.function.name"),
    ({"tool_choice": {"type": "function", "function": {}}, "tools": [TOOL]}, "tool_choice.function.name"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"functions": [{}]}, "functions"),
    ({"audio": {"voice": "x"}}, "audio"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG_CHATS, ids=lambda value: str(value)[:50])
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ErrorResponse) as caught:
        chat(vision=True, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(f"{param}: ")
    assert len(caught.value.message) < 300
    assert "\n" not in caught.value.message


def test_remote_images_are_refused_in_words() -> None:
    with pytest.raises(ErrorResponse, match="images are not fetched; send a PNG, JPEG or WebP as data:"):
        chat(vision=True, **user(image("https://example.com/cat.png")))
    with pytest.raises(ErrorResponse, match="without its vision side"):
        chat(vision=False, **user(image(f"data:image/png;base64,{PIXEL}")))
    with pytest.raises(ErrorResponse, match="more than 20 MiB"):
        chat(vision=True, **user(image("data:image/png;base64," + "A" * (28 << 20))))


def test_a_whole_chat() -> None:
    asked = chat(
        model="anything",
        messages=[
            {"role": "developer", "content": "Kort."},
            {**USER, "name": "Kari"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": [{"type": "text", "text": "so"}, {"type": "text", "text": "l"}],
            },
        ],
        temperature=0,
        top_p=1,
        top_k=40,
        presence_penalty=-2,
        max_tokens=9,
        max_completion_tokens=5,
        n=2,
        seed=-1,
        stop="§",
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=None,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "vaer"}},
        user="someone",
        metadata={"a": "b"},
        store=False,
    )
    assert asked.messages == [
        {"role": "system", "content": "Kort."},
        {"role": "user", "content": "Hei"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "name": "vaer", "arguments": "{}"}]},
        {"role": "tool", "content": "sol", "tool_call_id": "c1", "name": "vaer"},
    ]
    assert (asked.n, asked.stream, asked.include_usage) == (2, True, True)
    seed = -1 % (2**32 - 1)
    assert asked.options == Options(
        max_tokens=5,
        seed=seed,
        sampling={"temperature": 0.0, "top_p": 1.0, "top_k": 40, "presence_penalty": -2.0},
        stop=("§",),
        tools=[Tool("vaer", "", {"type": "object"})],
        tool_choice="vaer",
        logprobs=0,
    )
    assert [one.seed for one in asked.options_per_answer()] == [seed, 0]


def test_pictures_come_as_bytes() -> None:
    data = next(IMAGES.glob("*.png")).read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    asked = chat(vision=True, **user({"type": "text", "text": "Kva?"}, image(url)))
    assert asked.messages[0]["content"] == [{"type": "text", "text": "Kva?"}, {"type": "image", "data": data}]


def test_formats() -> None:
    assert chat(response_format={"type": "text"}).options.schema is None
    assert chat(response_format={"type": "json_object"}).options.schema == {"type": "object"}
    schema = {"type": "array"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert chat(response_format=form).options.schema == schema


def completion(**fields: Any) -> Any:
    return parse_completion_request(json.dumps({"prompt": "Hei", **fields}).encode(), 20)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 7, "n": 3}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
    ],
)
def test_wrong_completions(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ErrorResponse) as caught:
        completion(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_prompts() -> None:
    assert completion().prompts == ["Hei"]
    assert completion(prompt=[1, 2]).prompts == [[1, 2]]
    assert completion(prompt=[[1, 2], [3]], best_of=1, suffix="").prompts == [[1, 2], [3]]
    assert completion(prompt=["a", ""]).prompts == ["a", ""]
    assert (completion().options.max_tokens, completion(max_tokens=0).options.max_tokens) == (16, 0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ],
)
def test_wrong_embeddings(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ErrorResponse) as caught:
        parse_embedding_request(json.dumps(fields).encode())
    assert (caught.value.status, caught.value.param) == (400, param)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
NAMES = [
    "messages",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "response_format",
    "tools",
    "tool_choice",
    "modalities",
    "prompt",
    "echo",
    "suffix",
    "best_of",
    "input",
    "encoding_format",
    "dimensions",
    "model",
    "role",
    "content",
    "type",
    "function",
    "name",
    "json_schema",
    "image_url",
    "url",
]
BODIES = st.recursive(
    JSON,
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=6) | st.lists(inner, max_size=2),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(BODIES)
def test_nothing_crashes_the_reader(body: Any) -> None:
    raw = json.dumps(body, allow_nan=True).encode()
    for read in (
        lambda: parse_chat_request(raw, True),
        lambda: parse_completion_request(raw, 8),
        lambda: parse_embedding_request(raw),
    ):
        try:
            read()
        except ErrorResponse as refusal:
            assert refusal.status == 400
            assert refusal.response().body


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_crash_the_reader(raw: bytes) -> None:
    with pytest.raises(ErrorResponse):
        parse_chat_request(raw, False)


def test_a_million_values_are_refused_before_they_take_memory() -> None:
    with pytest.raises(ErrorResponse, match="more than 1000000 values"):
        parse_chat_request(b'{"messages": [' + b"[]," * 1_000_000 + b"[]]}", False)


def test_metrics_are_text_that_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.count("/v1/models", 200, 0.25)
    metrics.count("/v1/models", 200, 0.5)
    metrics.count('od"d\n', 404, 1e-7)
    lines = metrics.text({"active": 2, "prompt_tokens_total": 123456789012}).splitlines()
    assert 'borealis_gguf_http_requests_total{route="/v1/models",status="200"} 2' in lines
    assert 'borealis_gguf_http_request_seconds_total{route="/v1/models"} 0.75' in lines
    assert 'borealis_gguf_http_requests_total{route="od\\"d\\n",status="404"} 1' in lines
    assert "borealis_gguf_active 2" in lines
    assert "borealis_gguf_prompt_tokens_total 123456789012" in lines
    assert "# TYPE borealis_gguf_prompt_tokens_total counter" in lines


def test_the_page_has_the_same_ranges() -> None:
    source = (PAGE / "settings.js").read_text(encoding="utf-8")
    ranges = re.findall(r'name: "(temperature|top_p)", least: (\d+), most: (\d+)', source)
    assert [(name, (float(low), float(high))) for name, low, high in ranges] == [
        (name, OPENAI_RANGES[name]) for name in ("temperature", "top_p")
    ]
