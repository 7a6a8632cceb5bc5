"""Loading and generating, against llama-cpp-python's own high-level class where it has an answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from borealis_gguf.errors import BorealisError, InvalidInput
from borealis_gguf.runtime.events import Finished, Options, Text
from borealis_gguf.runtime.fitting.cpu_probe import extra_buffers_work
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.prompting.sampling_settings import Sampling, override_sampling
from borealis_gguf.runtime.scheduling.output_text import OutputText

from ..helpers.asking import encode, generate, local, stream

ASK = "Fortell om Norge."


def test_greedy_ids_are_those_of_llama_cpp_python(nano_q4: Path) -> None:
    """Its class leaves flash attention off, so sums differ in the last bits: near ties may go either way."""
    with load(nano_q4, context=512, sampling={"temperature": 0}) as model:
        ids = encode(model, ASK)
        mine = chosen(model, ids, max_tokens=24)
        safe = extra_buffers_work()
    assert mine
    for id, logits in zip(mine, their_logits(nano_q4, ids, mine, safe), strict=True):
        assert logits.max() - logits[id] < 0.1  # they span about 20


def chosen(model: Model, ids: list[int], **options: Any) -> list[int]:
    """The tokens of an answer, which never include the one that ends it."""
    events = model.complete(ids, Options(logprobs=0, **options))
    return [each.id for event in events if isinstance(event, Text) for each in event.logprobs]


def their_logits(path: Path, ids: list[int], mine: list[int], extra_buffers: bool) -> Iterator[np.ndarray]:
    """What llama-cpp-python computes before each of `mine`, fed with the same ids."""
    default = llama_cpp.llama_model_default_params()
    default.use_extra_bufts = extra_buffers
    with pytest.MonkeyPatch.context() as patch:  # its class has no option for this
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", lambda: default)
        theirs = llama_cpp.Llama(str(path), n_ctx=512, verbose=False, logits_all=True)
    theirs.eval(ids)
    for id in mine:
        yield np.array(theirs.scores[theirs.n_tokens - 1])
        theirs.eval([id])
    theirs.close()


@pytest.mark.parametrize("extra_buffers", [True, False])
def test_a_seed_makes_answers_repeatable(nano_q8: Path, extra_buffers: bool) -> None:
    safe = None if extra_buffers else False  # True may be fatal on this machine; None asks the probe
    with load(nano_q8, seed=7, extra_buffers=safe) as model:
        first, second = generate(model, ASK, max_tokens=40), generate(model, ASK, max_tokens=40)
        answers = {generate(model, ASK, seed=seed, max_tokens=40) for seed in range(6)}
    assert first == second != ""
    assert len(answers) > 1


def test_it_ends_its_turn_and_shows_no_control_token(nano_q8: Path) -> None:
    with load(nano_q8, seed=1) as model:
        ids = encode(model, ASK)
        made = chosen(model, ids, seed=3)
        assert 0 < len(made) < local(model).engine.n_context - len(ids)
        assert not any(local(model).engine.is_control(id) for id in made)
        assert "<end_of_turn>" not in generate(model, ASK, seed=3)


def test_the_context_bounds_the_answer(nano_q8: Path) -> None:
    with load(nano_q8, context=64, sampling={"top_k": 1}) as model:
        with pytest.raises(InvalidInput, match=r"the prompt is \d+ tokens, the context 64"):
            generate(model, "hei " * 100)
        ids = encode(model, "x " * 20)
        assert len(chosen(model, ids, seed=0)) <= 64 - len(ids)
        assert stream(model, ASK, max_tokens=0) == []
        with pytest.raises(InvalidInput, match="max_tokens: -1"):
            stream(model, ASK, max_tokens=-1)


def test_a_prompt_longer_than_a_batch(nano_q8: Path) -> None:
    with load(nano_q8, sampling={"temperature": 0}) as model:
        assert local(model).engine.n_context == 2048
        ids = encode(model, "Norge er et land. " * 300)
        assert len(ids) > 2 * 512
        assert len(chosen(model, ids, max_tokens=3)) == 3


def test_characters_come_whole(nano_q8: Path) -> None:
    text = "Blåbær 😀 ÆØÅ 👩‍👧 漢字"
    with load(nano_q8) as model:
        ids = local(model).engine.tokenize(text, special=False)
        assert any(
            b"\x80" <= local(model).engine.piece(id)[-1:] < b"\xc0" and len(local(model).engine.piece(id)) == 1
            for id in ids
        )
        output = OutputText()
        pieces = [piece for id in ids if (piece := output.push(local(model).engine.piece(id)))]
        assert "".join(pieces) == text
        assert "\ufffd" not in "".join(pieces)
        emoji = local(model).engine.tokenize("😀", special=False)
        assert OutputText().push(b"".join(map(local(model).engine.piece, emoji[:-1])), last=True) == "\ufffd"


def test_closing_ends_the_answers(nano_q8: Path) -> None:
    with load(nano_q8, seed=1) as model:
        running, waiting = model.complete("Norge er"), model.complete("Sverige er")
        assert isinstance(next(running), Text)
    *_, last = running
    assert isinstance(last, Finished) and last.reason == "cancelled"
    assert [event.reason for event in waiting if isinstance(event, Finished)] == ["cancelled"]
    model.close()
    with pytest.raises(BorealisError, match="the model is closed"):
        model.complete("Norge er")


def test_nothing_is_printed(nano_q8: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with load(nano_q8, seed=1) as model:
        generate(model, ASK, max_tokens=5)
    with pytest.raises(InvalidInput):
        load(nano_q8, context=10**6)
    assert capfd.readouterr() == ("", "")


def test_progress_is_reported_and_can_stop_the_loading(nano_q8: Path) -> None:
    seen: list[float] = []
    load(nano_q8, on_progress=seen.append).close()
    assert seen == sorted(seen) and seen[-1] == 1.0

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(nano_q8, on_progress=stop)


def test_a_model_without_a_chat_template(nano_q8: Path, tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    path.write_bytes(nano_q8.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_tempLATE"))
    with load(path, seed=1) as model:
        with pytest.raises(InvalidInput, match=r"no tokenizer\.chat_template: not a chat model; use raw"):
            generate(model, ASK)
        assert generate(model, "Norge er", raw=True, max_tokens=5) != ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "a context of 0 tokens; this model can have 1 to 2048"),
        ({"context": 4096}, "1 to 2048"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": 2**32 - 1}, "seed: 4294967295"),
        ({"threads": 0}, "threads: 0"),
        ({"sampling": {"temprature": 1}}, "temprature: no such sampling option; there are temperature, top_k"),
        ({"sampling": {"temperature": float("nan")}}, "temperature: nan is not a number"),
        ({"sampling": {"top_k": 1.5}}, "top_k: 1.5 is not a whole number"),
        ({"sampling": {"top_p": 1.1}}, "top_p: 1.1 is not within 0.0 and 1.0"),
    ],
)
def test_options_that_make_no_sense(nano_q8: Path, options: dict, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(nano_q8, **options)
    assert message in str(caught.value)


def test_files_that_are_no_models_never_reach_llama_cpp(nano_q8: Path, tmp_path: Path) -> None:
    data = nano_q8.read_bytes()
    for name, content in (
        ("empty", b""),
        ("text", b"hello " * 100),
        ("cut", data[: len(data) // 2]),
        ("head", data[:999]),
    ):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match=f"{name}.gguf"):
            load(path)
    with pytest.raises(InvalidInput):
        load(tmp_path)


def test_what_llama_cpp_refuses_is_told_in_one_line(nano_q8: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(nano_q8.read_bytes().replace(b"blk.3.ffn_up.weight", b"blk.3.ffn_uq.weight"))
    with pytest.raises(BorealisError, match=r"odd\.gguf: llama\.cpp cannot load it: .*blk\.3\.ffn_up") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_sampling_comes_from_the_file_and_can_be_overridden(nano_q8: Path) -> None:
    with load(nano_q8, sampling={"temperature": 0.5}) as model:
        sampling = local(model).sampling
        assert sampling.top_k == 64
        assert abs(sampling.top_p - 0.95) < 1e-7
        assert sampling.temperature == 0.5
    assert override_sampling(Sampling(), {"top_k": 5.0}) == Sampling(top_k=5)
