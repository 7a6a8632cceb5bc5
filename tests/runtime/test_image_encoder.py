"""Encoding images is slow: meanwhile other answers go on, and waiting ones can be cancelled."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.errors import BorealisError, Busy, InvalidInput
from borealis_gguf.runtime.answer import Answer
from borealis_gguf.runtime.events import Finished, Options
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.process.isolated_model import IsolatedModel
from borealis_gguf.runtime.prompting.image_decoding import ImageFile, read_image

from ..generate.vision_goldens import IMAGES
from ..helpers.asking import generate, local
from ..helpers.serving import until
from ..helpers.vision_models import SEEING
from .test_isolated_model import LOADING, dying
from .test_vision import asked, made

PICTURES = ("exact.png", "turned.jpg", "wide-rgba.png", "palette.png")
TEXT = "Skriv om Norge."
SHORT = Options(max_tokens=4, seed=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(SEEING[0], tmp_path_factory.mktemp("seeing"))


@dataclass
class Gate:
    """Blocks an encoder until `open` is set; `looks` are the sizes of the images it was given."""

    open: threading.Event = field(default_factory=threading.Event)
    looks: list[tuple[int, int]] = field(default_factory=list)
    error: Exception | None = None


@contextmanager
def slow(path: Path, **loading: Any) -> Iterator[tuple[Model, Gate]]:
    """A model whose encoder waits at a gate."""
    gate = Gate()
    with load(path, **{"context": 256, "threads": 1, **loading}) as model:
        encoder = local(model).image_encoder
        encoder._vision = encoder.engine.load_vision(encoder._file())
        encode = encoder._vision.features

        def features(image: ImageFile) -> Any:
            gate.looks.append((image.width, image.height))
            assert gate.open.wait(20)
            if gate.error is not None:
                raise gate.error
            return encode(image)

        encoder._vision.features = features  # type: ignore[method-assign]
        try:
            yield model, gate
        finally:
            gate.open.set()


def look(model: Model, *pictures: str) -> Answer:
    return model.chat(asked(*(IMAGES / picture for picture in pictures)), SHORT)


def size(picture: str) -> tuple[int, int]:
    image = read_image(IMAGES / picture)
    return image.width, image.height


def samplers(model: Model) -> list[Any]:
    """The samplers of the waiting jobs."""
    return [job.sampler for job in local(model)._scheduler._waiting]


@pytest.mark.parametrize("miniature", SEEING, ids=lambda m: m.name)
def test_the_header_says_how_many_tokens_an_image_is(miniature: Any, tmp_path: Path) -> None:
    with slow(made(miniature, tmp_path)) as (model, gate):
        gate.open.set()
        assert local(model).image_encoder.tokens_per_image == 4
        look(model, "exact.png").text()
        (features,) = local(model).image_encoder._cache.values()
        assert len(features) == 4


def test_text_answers_go_on_while_images_are_encoded(small: Path) -> None:
    with slow(small, parallel=2) as (model, gate):
        pictures = [look(model, "exact.png"), look(model, "turned.jpg", "palette.png")]
        until(lambda: gate.looks == [size("exact.png")])
        assert generate(model, TEXT, max_tokens=4) != ""
        stats = model.stats()
        assert (stats["active"], stats["waiting"]) == (0, 2)
        assert model.embed(["Norge"])[0].shape == (1, 64)
        gate.open.set()
        told = [answer.text() for answer in pictures]
        again = [look(model, "exact.png").text(), look(model, "turned.jpg", "palette.png").text()]
        assert told == again and "" not in told
        assert gate.looks == [size("exact.png"), size("turned.jpg"), size("palette.png")]


def test_closing_ends_encoding_and_waiting_answers(small: Path) -> None:
    with slow(small) as (model, gate):
        answers = [look(model, picture) for picture in PICTURES[:3]]
        until(lambda: len(gate.looks) == 1)
        held = samplers(model)
        assert len(held) == 3 and all(sampler._chain for sampler in held)
        closing = threading.Thread(target=model.close)
        closing.start()
        for answer in answers:
            with pytest.raises(BorealisError, match=r"^the model is closed$"):
                answer.text()
        assert not any(sampler._chain for sampler in held)
        assert closing.is_alive()  # nothing is freed under an encoder
        gate.open.set()
        closing.join(20)
        assert gate.looks == [size(PICTURES[0])]
        with pytest.raises(BorealisError, match=r"^the model is closed$"):
            look(model, PICTURES[0])


def test_cancelled_images_are_not_encoded(small: Path) -> None:
    with slow(small) as (model, gate):
        first, second, third = look(model, *PICTURES[:2]), look(model, PICTURES[2]), look(model, PICTURES[3])
        until(lambda: len(gate.looks) == 1)
        held = samplers(model)
        for answer in (first, second):
            answer.cancel()
            (last,) = answer
            assert isinstance(last, Finished) and last.reason == "cancelled" and last.usage.completion_tokens == 0
        until(lambda: [bool(sampler._chain) for sampler in held] == [False, False, True])
        gate.open.set()
        assert third.text() != ""
        assert gate.looks == [size(PICTURES[0]), size(PICTURES[3])]
        third.cancel()
        assert third.finished is not None and third.finished.reason == "length"


def test_answers_with_images_wait_in_the_same_queue(small: Path) -> None:
    with slow(small, max_queue=1) as (model, gate):
        waiting = [look(model, picture) for picture in PICTURES[:2]]
        for ask in (lambda: look(model, PICTURES[2]), lambda: generate(model, TEXT, max_tokens=1)):
            with pytest.raises(Busy, match="2 requests are waiting already"):
                ask()
        waiting[1].cancel()
        until(lambda: model.stats()["waiting"] == 1)
        assert generate(model, TEXT, max_tokens=1) != ""
        gate.open.set()
        assert waiting[0].text() != ""
        assert model.stats()["waiting"] == 0


def test_encoder_errors_reach_the_answer(small: Path) -> None:
    with slow(small) as (model, gate):
        for error, words in (
            (RuntimeError("burnt"), r"^looking at an image failed: RuntimeError\('burnt'\)$"),
            (InvalidInput("no picture"), "^no picture$"),
        ):
            gate.error = error
            gate.open.clear()
            answer = look(model, "exact.png")
            (held,) = samplers(model)
            gate.open.set()
            with pytest.raises(BorealisError, match=words):
                answer.text()
            assert held._chain is None
        gate.error = None
        assert look(model, "exact.png").text() != ""


def test_an_isolated_model_queues_many_images(small: Path, tmp_path: Path) -> None:
    """More answers with images than the process has threads for requests."""
    patch = f"""
import time
from pathlib import Path
from borealis_gguf.runtime.llama.vision import VisionTower
features, gate = VisionTower.features, Path({str(tmp_path / "open")!a})
def slow(self, image):
    while not gate.exists(): time.sleep(0.01)
    return features(self, image)
VisionTower.features = slow
"""
    loading = LOADING | {"mmproj": str(small.parent / "mmproj-seeing-56-F16.gguf")}
    with Model(small, IsolatedModel(small, loading, command=dying(small, patch))) as model:
        answers = [look(model, picture) for picture in (*PICTURES, *PICTURES)]
        assert generate(model, TEXT, max_tokens=4) != ""
        assert model.stats()["waiting"] == 8
        (tmp_path / "open").touch()
        told = [answer.text() for answer in answers]
        assert told[:4] == told[4:] and "" not in told
