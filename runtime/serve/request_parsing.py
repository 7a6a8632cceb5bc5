"""Parses and checks the JSON bodies of chat, completion and embedding requests."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..events import Options, Tool
from ..process.in_process_model import MAX_SEED, MAX_STOPS
from ..prompting.sampling_settings import OPENAI_RANGES
from ..prompting.tool_calls import CHOICES
from .chat_messages import Message, parse_messages
from .error_response import invalid_field
from .json_fields import Fields, parse_object

MAX_ANSWERS = 16
MAX_CHOICES = 128
"""Answers of a completion request: prompts times `n`."""

MAX_INPUTS = 2048
MAX_STOP_LENGTH = 1000
MAX_TOOLS = 128
MAX_TOP_LOGPROBS = 20
MAX_INT = 2**31 - 1
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
SAMPLING_FIELDS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
UNSUPPORTED_FIELDS = ("logit_bias", "functions", "function_call", "audio")
"""Fields that would change the answer. Other unknown fields are ignored, since OpenAI's clients send many."""

Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """The fields that chat and completion requests share; `n` answers to each prompt."""

    options: Options
    n: int
    stream: bool
    include_usage: bool

    def options_per_answer(self) -> list[Options]:
        """The options of each of the `n` answers, with consecutive seeds."""
        first = secrets.randbelow(MAX_SEED + 1) if self.options.seed is None else self.options.seed
        return [replace(self.options, seed=(first + i) % (MAX_SEED + 1)) for i in range(self.n)]


@dataclass(frozen=True, slots=True)
class ChatRequest(AnswerRequest):
    messages: list[Message]


@dataclass(frozen=True, slots=True)
class CompletionRequest(AnswerRequest):
    prompts: list[Prompt]
    echo: bool


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    inputs: list[Prompt]
    base64: bool
    dimensions: int | None


def parse_chat_request(raw: bytes, vision: bool) -> ChatRequest:
    """The body of /v1/chat/completions. Raises ErrorResponse."""
    body = _body(raw)
    messages = parse_messages(body, vision)
    tools = [_tool(tool) for tool in body.objects("tools", MAX_TOOLS)]
    if len({tool.name for tool in tools}) != len(tools):
        raise invalid_field("tools", "two of them have the same name")
    max_tokens = body.integer("max_completion_tokens", 1, MAX_INT) or body.integer("max_tokens", 1, MAX_INT)
    options = Options(
        max_tokens=max_tokens,
        seed=_seed(body),
        sampling=_sampling(body),
        stop=_stop(body),
        schema=_schema(body),
        tools=tools,
        tool_choice=_tool_choice(body, tools),
        logprobs=_chat_logprobs(body),
    )
    if options.schema is not None and tools and options.tool_choice != "none":
        raise invalid_field("response_format", "cannot be asked for together with tools; leave one of them out")
    body.flag(
        "parallel_tool_calls"
    )  # true, OpenAI's default, allows several calls in an answer; here it is at most one
    if any(kind != "text" for kind in body.array("modalities", 8) or ()):
        raise invalid_field("modalities", "this server answers in text alone")
    return ChatRequest(options, body.integer("n", 1, MAX_ANSWERS) or 1, *_streaming(body), messages)


def parse_completion_request(raw: bytes, max_answers: int) -> CompletionRequest:
    """The body of /v1/completions, for at most `max_answers` answers. Raises ErrorResponse."""
    body = _body(raw)
    options = Options(
        max_tokens=body.integer("max_tokens", 0, MAX_INT) if body.has("max_tokens") else 16,
        seed=_seed(body),
        sampling=_sampling(body),
        stop=_stop(body),
        logprobs=body.integer("logprobs", 0, MAX_TOP_LOGPROBS),
    )
    prompts, n = _prompts(body, "prompt", MAX_CHOICES), body.integer("n", 1, MAX_CHOICES) or 1
    if len(prompts) * n > min(max_answers, MAX_CHOICES):
        raise invalid_field(
            "n", f"{len(prompts)} × {n} answers; {min(max_answers, MAX_CHOICES)} are the most in one request"
        )
    if body.text("suffix"):
        raise invalid_field("suffix", "this server continues texts; it does not fill gaps")
    if (body.integer("best_of", 1, MAX_CHOICES) or n) != n:
        raise invalid_field("best_of", "is not supported, unless it is the same as n")
    echo = body.flag("echo") or False
    if echo and options.logprobs is not None:
        raise invalid_field("echo", "logprobs of the prompt are not known; leave out echo or logprobs")
    return CompletionRequest(options, n, *_streaming(body), prompts, echo)


def parse_embedding_request(raw: bytes) -> EmbeddingRequest:
    """The body of /v1/embeddings. Raises ErrorResponse."""
    body = _body(raw)
    inputs = _prompts(body, "input", MAX_INPUTS)
    if not all(inputs):
        raise invalid_field("input", "an empty text has no embedding")
    encoding = body.one_of("encoding_format", ("float", "base64"))
    return EmbeddingRequest(inputs, encoding == "base64", body.integer("dimensions", 1, MAX_INT))


def _body(raw: bytes) -> Fields:
    body = parse_object(raw)
    body.text("model", 512)
    for name in UNSUPPORTED_FIELDS:
        if body.any(name):
            raise invalid_field(name, "is not supported" + ("; use tools" if name.startswith("function") else ""))
    return body


def _streaming(body: Fields) -> tuple[bool, bool]:
    options = body.object("stream_options")
    include_usage = options is not None and options.flag("include_usage")
    return body.flag("stream") or False, bool(include_usage)


def _seed(body: Fields) -> int | None:
    """Any 64-bit number, as in OpenAI's API, reduced to llama.cpp's range."""
    seed = body.integer("seed", -(2**63), 2**63 - 1)
    return None if seed is None else seed % (MAX_SEED + 1)


def _sampling(body: Fields) -> dict[str, float]:
    given: dict[str, float | None] = {name: body.number(name, *OPENAI_RANGES[name]) for name in SAMPLING_FIELDS}
    given["top_k"] = body.integer("top_k", 0, MAX_INT)
    return {name: value for name, value in given.items() if value is not None}


def _stop(body: Fields) -> tuple[str, ...]:
    value = body.any("stop")
    if isinstance(value, str):
        value = [value]
        texts = Fields({"stop": value})
    else:
        texts = body
    stops = texts.array("stop", MAX_STOPS) or []
    if not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise invalid_field("stop", f"each must be a text of 1 to {MAX_STOP_LENGTH} characters")
    return tuple(stops)


def _chat_logprobs(body: Fields) -> int | None:
    top = body.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if not body.flag("logprobs"):
        if top:
            raise invalid_field("top_logprobs", "needs logprobs to be true")
        return None
    return top or 0


def _schema(body: Fields) -> dict[str, Any] | None:
    form = body.object("response_format")
    if form is None:
        return None
    kind = form.one_of("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise form.invalid("type", "is missing")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    described = form.needed_object("json_schema")
    described.text("name", 64)
    return described.needed_object("schema").values


def _tool(tool: Fields) -> Tool:
    if tool.one_of("type", ("function",)) is None:
        raise tool.invalid("type", "is missing")
    function = tool.needed_object("function")
    name = function.needed_text("name")
    if not NAME.fullmatch(name):
        raise function.invalid("name", "must be 1 to 64 of a-z, A-Z, 0-9, _ and -")
    if name in CHOICES:
        raise function.invalid("name", f"{name} has a meaning of its own in tool_choice; take another name")
    parameters = function.object("parameters")
    return Tool(
        name, function.text("description") or "", {"type": "object"} if parameters is None else parameters.values
    )


def _tool_choice(body: Fields, tools: Sequence[Tool]) -> str:
    value = body.any("tool_choice")
    if value is None:
        return "auto"
    if isinstance(value, dict):
        choice = body.needed_object("tool_choice")
        choice.one_of("type", ("function",))
        function = choice.needed_object("function")
        return function.one_of("name", [tool.name for tool in tools]) or _missing_name(function)
    choice = body.one_of("tool_choice", CHOICES) or "auto"
    if choice == "required" and not tools:
        raise invalid_field("tool_choice", "there are no tools to choose from")
    return choice


def _missing_name(function: Fields) -> str:
    raise function.invalid("name", "is missing")


def _prompts(body: Fields, name: str, most: int) -> list[Prompt]:
    """A text, an array of texts, an array of token ids, or an array of such arrays."""
    value = body.any(name)
    if isinstance(value, str):
        return [value]
    if value is None:
        raise invalid_field(name, "is missing")
    if not isinstance(value, list) or not value:
        raise invalid_field(name, "must be a text, texts, token ids, or arrays of token ids, and not empty")
    if _are_ids(value):
        return [value]
    if len(value) > most:
        raise invalid_field(name, f"{len(value)} entries; {most} are the most")
    texts = all(isinstance(one, str) for one in value)
    if not texts and not all(isinstance(one, list) and _are_ids(one) for one in value):
        raise invalid_field(name, "must be a text, texts, token ids (0 or more), or arrays of them")
    return value


def _are_ids(value: list[Any]) -> bool:
    return bool(value) and all(type(id) is int and 0 <= id <= MAX_INT for id in value)
