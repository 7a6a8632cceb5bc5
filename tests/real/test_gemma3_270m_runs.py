"""The real Gemma 3 270m runs: asked, talked with, served, embedded, cancelled, and remembered beyond its windows.

Its weights are those of the base model, which knows Norwegian and no chat format: what it says there is not judged.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from borealis_gguf import load
from borealis_gguf.runtime.answer import Answer
from borealis_gguf.runtime.events import Chosen, Finished, Options, Text
from borealis_gguf.runtime.llama.engine import Engine
from borealis_gguf.runtime.model import Model
from borealis_gguf.runtime.scheduling.slots import common_prefix

from ..cli.test_cli import run
from ..helpers.asking import encode, local
from ..helpers.serving import serving, until
from ..runtime.test_terminal_chat import talk

CAPITAL = "Hovedstaden i Norge heter"
SHORT = Options(max_tokens=12)


@pytest.fixture(scope="module")
def model(gemma_270m_q8: Path) -> Iterator[Model]:
    with greedy(gemma_270m_q8) as loaded:
        yield loaded


def greedy(path: Path) -> Model:
    """Loaded so that what is computed does not depend on what was computed before."""
    return load(path, sampling={"temperature": 0}, context=4096, threads=1, batch_invariant=True)


@pytest.mark.parametrize(
    "text",
    [
        "Oslo er hovedstaden i Norge og har omtrent sju hundre tusen innbyggere.",
        "Stortinget vedtok i går en ny lov om vern av norske fjorder.",
        "The capital of Norway is Oslo, which lies at the end of a long fjord.",
    ],
)
def test_it_expects_real_sentences(gemma_270m_q8: Path, text: str) -> None:
    """Nats a token: 2.6 to 4.5, and much more for the same words in another order."""
    engine = Engine(gemma_270m_q8, context=256, threads=1, extra_buffers=False, gpu_layers=0, outputs=32)
    try:
        shuffled = " ".join(np.random.default_rng(1).permutation(text.split()))
        surprise, of_shuffled = (surprise_of(engine, words) for words in (text, shuffled))
    finally:
        engine.close()
    assert surprise < 5 and surprise + 1 < of_shuffled


def surprise_of(engine: Engine, text: str) -> float:
    """Mean negative log-likelihood of a text's tokens, in nats."""
    ids = [2, *engine.tokenize(text, special=False)]
    logits = engine.logits(ids, range(len(ids) - 1)).astype(np.float64)
    known = logits[np.arange(len(ids) - 1), ids[1:]]
    most = logits.max(axis=1)
    return float(np.mean(most + np.log(np.exp(logits - most[:, None]).sum(axis=1)) - known))


def test_run(gemma_270m_q8: Path) -> None:
    raw = run("run", gemma_270m_q8, CAPITAL, "--raw", "-n", "8", "--temperature", "0")
    assert raw.returncode == 0 and "Oslo" in raw.stdout, raw
    asked = "run", gemma_270m_q8, "Fortell om Norge på norsk.", "--seed", "1", "-n", "16", "--quiet"
    done, again = run(*asked), run(*asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == again.stdout and done.stdout.strip()


def test_a_conversation(model: Model) -> None:
    conversation = model.conversation("Svar på nynorsk.", options=SHORT)
    first, second = (said(conversation.send(text))[1] for text in ("Kva heiter hovudstaden i Noreg?", "Og i Sverige?"))
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * 2]
    assert first.usage.prompt_tokens <= second.usage.cached_tokens < second.usage.prompt_tokens


def said(answer: Answer) -> tuple[list[Chosen], Finished]:
    """The tokens of an answer, if `logprobs` were asked for, and how it ended."""
    *events, last = answer
    assert isinstance(last, Finished)
    return [each for event in events if isinstance(event, Text) for each in event.logprobs], last


TURN = (
    "Bygda nummer {0} ligg ved ein fjord, og der bur det {1} menneske som fiskar, dyrkar jord og går på ski om "
    "vinteren. Kyrkja er frå {2}, og skulen har {3} elevar i ti klassar. Kvar sommar kjem det gjester frå heile "
    "landet for å sjå fossen, gå i fjellet og høyre gamle songar i grendehuset. Kva heiter bygda?"
)


def test_a_conversation_beyond_the_windows(gemma_270m_q8: Path) -> None:
    """Only what is new is computed in every turn, also when windows have forgotten the beginning; and the last answer
    is to the last bit the one to the whole conversation computed anew."""
    options = Options(max_tokens=12, logprobs=2)
    held: list[int] = []
    prompt: list[int] = []
    chosen: list[Chosen] = []
    with greedy(gemma_270m_q8) as model:
        conversation = model.conversation(options=options)
        for n in range(10):
            chosen, finished = said(conversation.send(TURN.format(n, 37 * n + 5, 1700 + 13 * n, n * n + 7)))
            prompt = encode(model, conversation.messages[:-1])
            assert finished.reason == "length" and finished.usage.prompt_tokens == len(prompt)
            assert finished.usage.cached_tokens == common_prefix(held, prompt)
            assert len(prompt) - finished.usage.cached_tokens < 130
            held = [*prompt, *(each.id for each in chosen[:-1])]  # the last one was drawn, and not computed
        assert len(prompt) > 2 * local(model).engine.window == 1024
        assert local(model).engine.first_position(0) > 0
    with greedy(gemma_270m_q8) as model:
        assert said(model.chat(conversation.messages[:-1], options))[0] == chosen != []


def test_the_terminal_chat(model: Model, gemma_270m_q8: Path) -> None:
    seen = talk(model, "/system Svar på norsk.", "Hva heter hovedstaden i Norge?", "/stats", "Og i Sverige?")
    assert [message["role"] for message in seen.messages] == ["system", *["user", "assistant"] * 2]
    assert all(message["content"].strip() for message in seen.messages) and not seen.chat.errors_shown
    assert "cached" in seen.err.splitlines()[-1]
    done = run("chat", gemma_270m_q8, "--temperature", "0", text="/set max_tokens 12\nHei!\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_served(model: Model, gemma_270m_q8: Path) -> None:
    asked = [{"role": "user", "content": "Hva heter hovedstaden i Norge?"}]
    expected = model.chat(asked, SHORT).text()
    with serving(gemma_270m_q8) as server:
        chat = server.client.chat.completions
        whole = chat.create(model="m", messages=asked, max_tokens=12, temperature=0)  # type: ignore[arg-type]
        assert whole.choices[0].message.content == expected
        assert whole.usage and whole.usage.prompt_tokens == len(encode(model, asked))
        stream = chat.create(model="m", messages=asked, max_tokens=12, temperature=0, stream=True)  # type: ignore[arg-type]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
        texts = ["Oslo er hovedstaden i Norge.", "Norges hovedstad er Oslo."]
        made = server.client.embeddings.create(model="m", input=texts)
        vectors = np.array([each.embedding for each in made.data], np.float32)
        assert np.allclose(vectors, model.embed(texts)[0], atol=1e-3)


def test_embeddings(model: Model) -> None:
    pairs = [
        ("Oslo er hovedstaden i Norge.", "Norges hovedstad er Oslo."),
        ("Jeg liker å spise fisk til middag.", "Til middag vil jeg gjerne ha fisk."),
        ("Legen skrev ut en resept.", "Pasienten fikk medisin av legen."),
    ]
    vectors, _ = model.embed([text for pair in pairs for text in pair])
    assert vectors.shape == (6, 640) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    for n in range(3):
        others = np.delete(cosines[2 * n], [2 * n, 2 * n + 1])
        assert cosines[2 * n, 2 * n + 1] > others.max()


def test_cancelled_while_it_reads(model: Model) -> None:
    """A prompt that takes many seconds: the answer ends at once, and so does the computing."""
    answer = model.complete("Det var en gang en konge som het Håkon. " * 300)
    until(lambda: model.stats()["active"] == 1)
    time.sleep(0.5)
    assert_ends(answer, model)
    assert answer.finished is not None and answer.finished.usage.completion_tokens == 0
    assert answer.finished.usage.prompt_tokens > 3000 > model.stats()["kv_tokens"]
    assert "Oslo" in model.complete(CAPITAL, SHORT).text()


def test_cancelled_while_it_writes(model: Model) -> None:
    answer = model.complete("Det var en gang", Options(max_tokens=2000))
    assert isinstance(next(answer), Text)
    assert_ends(answer, model)
    assert answer.finished is not None and 0 < answer.finished.usage.completion_tokens < 2000
    assert "Oslo" in model.complete(CAPITAL, SHORT).text()


def assert_ends(answer: Answer, model: Model) -> None:
    """Cancel it: its last event comes within a second, and the engine has nothing to do any more."""
    began = time.monotonic()
    answer.cancel()
    *_, last = answer
    assert isinstance(last, Finished) and last.reason == "cancelled"
    until(lambda: model.stats()["active"] == 0, 1)
    assert time.monotonic() - began < 1
