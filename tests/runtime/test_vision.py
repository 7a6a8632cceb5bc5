"""Seeing: features and logits against transformers, pictures through the command line, and files that are no pictures.

Tolerances: features agree within a thousandth of their size where both sides see the same pixels (measured: 2e-4; the
projector's matrix is F16 in every mmproj, and so is ggml's table for GELU). Where a picture is stretched along both
axes or a JPEG is decoded, samples differ by a level of 255, which is worth up to 3e-3 here (measured: 1.7e-3). Another
picture's features differ by 0.3 and more. Logits: F16 in the text model's cache adds its own (measured: 4e-3); another
picture's differ by 0.25.
"""

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from borealis_gguf import api
from borealis_gguf.checkpoint.gguf_naming import mmproj_beside
from borealis_gguf.errors import InvalidInput
from borealis_gguf.runtime.events import GenerationRequest, Options
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.prompting.image_decoding import PNG, image_pixels, read_image, read_image_data
from borealis_gguf.runtime.prompting.prompt import image_places

from ..cli.test_cli import run as command
from ..generate.vision_goldens import GOLDEN, IMAGES
from ..helpers.asking import alone, encode, generate, local
from ..helpers.checkpoints import N_NANO, Miniature
from ..helpers.gguf_faults import set_value, with_metadata
from ..helpers.vision_models import SEEING

PROMPT = "Hva ser du på bildet?"
GOLDENS = json.loads(GOLDEN.read_text(encoding="utf-8"))
SAME_PIXELS = {"seeing-56": {"exact.png", "wide-rgba.png"}, "seeing-112": {"exact.png", "wide-rgba.png", "palette.png"}}


def asked(*images: Path, text: str = PROMPT) -> list[dict[str, Any]]:
    seen = [{"type": "image", "path": str(image)} for image in images]
    return [{"role": "user", "content": [*seen, {"type": "text", "text": text}]}]


def made(miniature: Miniature, folder: Path, mmproj: str = "f16") -> Path:
    """The model's GGUF, with an mmproj beside it."""
    plans = api.plan_quantize(miniature.write(folder), ["F32"], folder, mmproj=mmproj)
    api.execute(plans)
    return plans[0].path


@pytest.fixture(scope="module", params=SEEING, ids=lambda m: m.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(made(request.param, tmp_path_factory.mktemp("seeing")), context=512) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(SEEING[0], tmp_path_factory.mktemp("blå bær"))


@pytest.mark.parametrize("picture", sorted(path.name for path in IMAGES.iterdir()))
def test_sees_what_transformers_sees(model: Model, picture: str) -> None:
    name = model.path.name.removesuffix("-F32.gguf")
    want = GOLDENS[name][picture]
    ids, ((place, features),) = looked(model, asked(IMAGES / picture))
    assert ids == [id for id in want["ids"] if id != N_NANO]
    assert want["ids"][place : place + len(features) + 1] == [N_NANO] * len(features) + [ids[place]]
    expected = np.array(want["features"])
    tolerance = 1e-3 if picture in SAME_PIXELS[name] else 3e-3
    assert np.abs(features - expected).max() < tolerance * np.abs(expected).max()
    assert np.abs(logits(model, ids, [(place, features)]) - want["logits"]).max() < 8e-3


def logits(model: Model, ids: list[int], images: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """After the prompt, of the first 256 tokens."""
    engine = local(model).engine
    engine.truncate(0, 0)
    read = shift = 0
    for place, features in images:
        engine.prefill(0, read + shift, ids[read:place])
        assert engine.decode_features(0, place + shift, features)
        read, shift = place, shift + len(features)
    engine.prefill(0, read + shift, ids[read:])
    return engine.logits_at(-1)[:256].copy()


def looked(model: Model, prompt: list[dict[str, Any]]) -> tuple[list[int], list[tuple[int, np.ndarray]]]:
    """The ids of a conversation, and its images with their places."""
    inside = local(model)
    ids, images = inside.encode(GenerationRequest(prompt))
    places = image_places(inside.engine, ids, len(images))
    return ids, list(zip(places, map(inside.image_encoder.features, images), strict=True))


@pytest.mark.parametrize(("mmproj", "tolerance"), [("f32", 1e-3), ("bf16", 1e-3), ("q8_0", 2e-3)])
def test_other_types_see_the_same(mmproj: str, tolerance: float, tmp_path: Path) -> None:
    want = np.array(GOLDENS["seeing-112"]["exact.png"]["features"])
    with load(made(SEEING[1], tmp_path, mmproj), context=256) as model:
        prompt = asked(IMAGES / "exact.png")
        _, ((_, features),) = looked(model, prompt)
    assert np.abs(features - want).max() < tolerance * np.abs(want).max()


def test_several_images_and_their_order(model: Model) -> None:
    one, two = asked(IMAGES / "exact.png", IMAGES / "turned.jpg"), asked(IMAGES / "turned.jpg", IMAGES / "exact.png")
    (ids, (first, second)), (same, (third, fourth)) = looked(model, one), looked(model, two)
    assert ids == same
    assert (first[0], second[0]) == (third[0], fourth[0])
    assert np.array_equal(first[1], fourth[1])
    assert np.array_equal(second[1], third[1])
    assert np.abs(logits(model, ids, [first, second]) - logits(model, ids, [third, fourth])).max() > 0.1


def test_text_of_a_user_is_no_image(model: Model) -> None:
    bare = encode(model, asked(IMAGES / "exact.png"))
    text = f"{PROMPT} <start_of_image><end_of_image>"
    ids = encode(model, asked(IMAGES / "exact.png", text=text))
    assert len(ids) > len(bare) + 4
    (_, ((place, _),)), (_, ((usual, _),)) = (
        looked(model, asked(IMAGES / "exact.png", text=text)),
        looked(model, asked(IMAGES / "exact.png")),
    )
    assert place == usual


def test_the_child_sees_the_same(small: Path) -> None:
    prompt = asked(IMAGES / "wide-rgba.png")
    with load(small, seed=3, context=128) as model:
        expected = generate(model, prompt, max_tokens=12)
    assert alone(small, prompt, seed=3, context=128, options={"max_tokens": 12}) == expected


def test_the_command_line(small: Path, tmp_path: Path) -> None:
    picture = tmp_path / "blå bær på 100 %.jpg"
    picture.write_bytes((IMAGES / "turned.jpg").read_bytes())
    done = command("run", small, PROMPT, "--image", picture.name, "--seed", "1", "-n", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 1
    moved = tmp_path / "øye.gguf"
    moved.write_bytes((small.parent / "mmproj-seeing-56-F16.gguf").read_bytes())
    options = ("--mmproj", moved, "--seed", "1", "-n", "5")
    assert command("run", small, PROMPT, "--image", picture, *options).stdout == done.stdout
    failed = command("run", small, PROMPT, "--image", moved)
    assert (failed.returncode, failed.stderr) == (2, f"Error: {moved}: not a PNG, JPEG or WebP but a GGUF file\n")
    failed = command("run", small, PROMPT, "--image", picture, "--raw")
    assert failed.returncode == 2
    assert "--image needs the chat template" in failed.stderr


@pytest.mark.parametrize("isolate", [False, True])
def test_a_conversation_with_images_is_kept(
    isolate: bool, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images given as bytes and as files."""
    monkeypatch.setenv("BOREALIS_GGUF_CACHE", str(tmp_path / "cache"))
    data, options = (IMAGES / "exact.png").read_bytes(), Options(max_tokens=6, seed=4)
    loading: dict[str, Any] = {"context": 256, "threads": 1, "isolate": isolate}
    with load(small, **loading) as model:
        conversation = model.conversation(options=options)
        said = conversation.send(PROMPT, images=[data, IMAGES / "turned.jpg"]).text()
        conversation.save(tmp_path / "a.state")
    with load(small, **loading) as model:
        again = model.load_conversation(tmp_path / "a.state", options=options)
        assert again.messages == conversation.messages
        first, second, _ = again.messages[0]["content"]
        assert first == {"type": "image", "data": data}
        assert second == {"type": "image", "path": str(IMAGES / "turned.jpg")}
        assert again.regenerate().text() == said != ""


def test_what_cannot_be_asked(small: Path, tmp_path: Path) -> None:
    with load(small, context=16) as model:
        with pytest.raises(InvalidInput, match=r"ikke\.png: cannot be read"):
            generate(model, asked(tmp_path / "ikke.png"))
        with pytest.raises(InvalidInput, match="shorten it or ask for more context"):
            generate(model, asked(IMAGES / "exact.png"))
        with pytest.raises(InvalidInput, match="an image without a file"):
            generate(model, [{"role": "user", "content": [{"type": "image"}]}])
    wrong = r"seeing-56-F32\.gguf: not an mmproj but a gemma3"
    with pytest.raises(InvalidInput, match=wrong):
        load(small, context=16, mmproj=small)


def test_an_mmproj_is_found_by_name(small: Path, tmp_path: Path) -> None:
    assert mmproj_beside(small) == small.parent / "mmproj-seeing-56-F16.gguf"
    names = ("mmproj-a-4b-BF16.gguf", "MMPROJ-A-4B-f16.gguf", "mmproj-a-F32.gguf", "mmproj-a-4b-it-F16.gguf")
    for name in names:
        (tmp_path / name).touch()
    assert mmproj_beside(tmp_path / "a-4b-Q4_K_M.gguf") == tmp_path / names[1]
    assert mmproj_beside(tmp_path / "a-Q8_0-00001-of-00002.gguf") == tmp_path / names[2]
    assert mmproj_beside(tmp_path / "b-Q8_0.gguf") is None


def test_no_mmproj(nano_q8: Path) -> None:
    wanted = r"no mmproj-nano-nb-7m-F16\.gguf beside it to see images with; give one with --mmproj$"
    with pytest.raises(InvalidInput, match=wanted):
        alone(nano_q8, asked(IMAGES / "exact.png"))


def test_an_mmproj_of_another_model(nano_q8: Path, small: Path) -> None:
    wrong = "belongs to a model with embeddings of 64, not 256"
    with load(nano_q8, context=128, mmproj=mmproj_beside(small)) as model, pytest.raises(InvalidInput, match=wrong):
        generate(model, asked(IMAGES / "exact.png"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip.vision.image_size", 0),
        ("clip.vision.image_size", 2**32 - 1),
        ("clip.vision.patch_size", 0),
        ("clip.vision.patch_size", 2**31),
        ("clip.vision.projection_dim", 2**31),
        ("clip.vision.block_count", 2**31),
        ("clip.projector_type", "other"),
    ],
)
def test_an_mmproj_that_lies_is_refused_before_it_is_loaded(
    small: Path, tmp_path: Path, key: str, value: object
) -> None:
    mmproj = mmproj_beside(small)
    assert mmproj is not None
    bad = with_metadata(mmproj, tmp_path / "mmproj.gguf", set_value(key, value))
    with pytest.raises(InvalidInput, match=r"mmproj\.gguf: "), load(small, context=128, mmproj=bad) as model:
        generate(model, asked(IMAGES / "exact.png"))


def test_quantize_and_convert_name_the_files(tmp_path: Path) -> None:
    checkpoint = SEEING[0].write(tmp_path)
    names = [plan.path.name for plan in api.plan_quantize(checkpoint, ["Q8_0", "Q4_K_M"], tmp_path)]
    assert names == ["seeing-56-Q8_0.gguf", "seeing-56-Q4_K_M.gguf", "mmproj-seeing-56-F16.gguf"]
    (_, other) = api.plan_quantize(checkpoint, ["Q8_0"], tmp_path / "øye-Q8_0.gguf", mmproj="q8_0")
    assert other.path == tmp_path / "mmproj-øye-Q8_0.gguf"
    assert len(api.plan_quantize(checkpoint, ["Q8_0"], tmp_path, mmproj="none")) == 1
    assert api.plan_mmproj(checkpoint, tmp_path).path.name == "mmproj-seeing-56-F16.gguf"
    assert api.plan_mmproj(checkpoint, tmp_path, outtype="auto").path.name == "mmproj-seeing-56-BF16.gguf"


def test_quantize_of_what_cannot_see(nano: Path, nano_bf16: Path, tmp_path: Path) -> None:
    assert len(api.plan_quantize(nano, ["Q8_0"], tmp_path)) == 1
    assert len(api.plan_quantize(nano_bf16, ["Q8_0"], tmp_path)) == 1
    with pytest.raises(InvalidInput, match=r"cannot see, .*\(--mmproj none leaves the vision side out\)"):
        api.plan_quantize(nano, ["Q8_0"], tmp_path, mmproj="f16")
    with pytest.raises(InvalidInput, match="--mmproj f16 needs the checkpoint"):
        api.plan_quantize(nano_bf16, ["Q8_0"], tmp_path, mmproj="f16")
    with pytest.raises(InvalidInput, match="a GGUF holds no vision side"):
        api.plan_mmproj(nano_bf16, tmp_path)


def test_convert_mmproj_on_the_command_line(tmp_path: Path) -> None:
    checkpoint = SEEING[0].write(tmp_path)
    done = command("convert", checkpoint, "--mmproj", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["mmproj-seeing-56-F16.gguf"]
    assert command("quantize", "Q8_0", "-m", checkpoint, "--mmproj", "none", cwd=tmp_path).returncode == 0
    assert len(list(tmp_path.glob("*.gguf"))) == 2


# Pictures


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(("width", "height", "across", "down", "digest"), GOLDENS["resized"])
def test_resizing_is_pillows(width: int, height: int, across: int, down: int, digest: str) -> None:
    y, x = np.mgrid[:height, :width]
    pattern = (np.stack([x * x * 7 + y * 13, x * 31 + y * y, x * y], axis=-1) % 251).astype(np.uint8)
    resized = image_pixels(read_image_data(encoded(pattern)), across, down)
    assert hashlib.sha256(resized.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, "ab/cd"), (2, "ba/dc"), (3, "dc/ba"), (4, "cd/ab"), (5, "ac/bd"), (6, "ca/db"), (7, "db/ca"), (8, "bd/ac")],
)
def test_orientations(orientation: int, expected: str, form: str) -> None:
    levels = {"a": 10, "b": 90, "c": 170, "d": 250}
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.array([[[levels[name]] * 3 for name in "ab"], [[levels[name]] * 3 for name in "cd"]], np.uint8)
    pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)
    turned = image_pixels(read_image_data(encoded(pixels, form, exif=exif)), 16, 16)[4::8, 4::8, 0]
    names = [[min(levels, key=lambda name: abs(levels[name] - int(level))) for level in row] for row in turned]
    assert "/".join(map("".join, names)) == expected


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"II*\0" + b"\xff" * 40, b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03", b"x" * 30]
)
def test_orientations_that_make_no_sense(exif: bytes) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    chunks = header(2, 2), (b"eXIf", exif), (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)))
    assert np.array_equal(image_pixels(read_image_data(png(*chunks, END)), 2, 2), pixels)


def test_what_is_no_rgb_becomes_it() -> None:
    grey = np.arange(0, 1 << 16, 64, dtype=np.uint16).reshape(32, 32)
    for pixels, expected in (
        (grey, grey >> 8),
        (grey.astype(np.uint8), grey.astype(np.uint8)),
        (np.dstack([(grey >> 8).astype(np.uint8)] * 3 + [np.zeros((32, 32), np.uint8)]), grey >> 8),
    ):
        shown = image_pixels(read_image_data(encoded(pixels)), 32, 32)
        assert np.array_equal(shown, np.dstack([expected.astype(np.uint8)] * 3))


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 90}, {"save_all": True, "append_images": []}])
def test_webp(options: dict[str, Any]) -> None:
    with Image.open(IMAGES / "exact.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    data = encoded(pixels, "WEBP", **options)
    assert np.abs(image_pixels(read_image_data(data), 56, 56).astype(int) - pixels).mean() < 6
    for length in range(0, len(data), 7):
        with pytest.raises(InvalidInput):
            read_image_data(data[:length])


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InvalidInput, match=r'^images need Pillow, .*; pip install "borealis-gguf\[images\]"$'):
        read_image(IMAGES / "exact.png")


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlaced: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)


END = (b"IEND", b"")


def pixels(n: int) -> tuple[bytes, bytes]:
    return b"IDAT", zlib.compress(bytes(n))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a PNG, JPEG or WebP: the file is empty"),
        (b"hello", "not a PNG, JPEG or WebP$"),
        (b"GIF89a", "but a GIF; save it as PNG or JPEG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "a damaged image"),
        (b"\0\0\0\x18ftypheic", "but a HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a Git LFS pointer, not the file itself$"),
        (png(header(1 << 16, 1 << 16), pixels(1), END), "too large to decode; 64 million pixels are the most"),
        (png(header(1 << 13, 10000), pixels(1), END), "8192 × 10000; 64 million pixels are the most"),
        (png(header(1 << 30, 1), pixels(1), END), "64 million pixels are the most"),
        (png(header(0, 5), pixels(1), END), "0 × 5|a damaged image"),
        (png(header(5, 5, 3), pixels(1), END), "a damaged image"),
        (png(header(5, 5), pixels(79), END), "a damaged image"),
        (png(header(5, 5), (b"IDAT", b"no zlib"), END), "a damaged image"),
        (png(header(5, 5), (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))), pixels(80), END), "a damaged image"),
        (png(header(5, 5), (b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26))), pixels(80), END), "a damaged image"),
        (png(pixels(80), END), "a damaged image"),
        (png(END), "a damaged image"),
        (png(header(5, 5), pixels(80)), "a damaged image"),
        (png(header(5, 5), pixels(80), END)[:-9] + b"\0IEND    ", "a damaged image"),
        (png(header(5, 5), pixels(80), END)[:-1], "in the middle"),
        (b"\xff\xd8\xff\xd9", "a damaged image"),
        (b"\xff\xd8\xff\xc0\0\x08\x08\xff\xff\xff\xff\x03\xff\xda\0\x02\xff\xd9", "64 million pixels|a damaged"),
        (b"\xff\xd8\xff\xc0\0\x08\x08\0\1\0\1\x03" + b"\xff\xda\0\x02" * 101 + b"\xff\xd9", "drawn in 101 steps"),
        (b"\xff\xd8\xff\xe0\0\0", "in the middle"),
    ],
)
def test_what_is_no_picture(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "å.png"
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("picture", sorted(path.name for path in IMAGES.iterdir()))
def test_cut_short_anywhere(picture: str, tmp_path: Path) -> None:
    data, path = (IMAGES / picture).read_bytes(), tmp_path / picture
    assert read_image(IMAGES / picture).data == data
    for length in {*range(0, len(data), 97), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(InvalidInput):
            read_image(path)


@pytest.mark.parametrize("change", [lambda data: data[:-40], lambda data: b"x" + data])
def test_a_damaged_picture_is_one_line(change: Callable[[bytes], bytes], small: Path, tmp_path: Path) -> None:
    path = tmp_path / "skadd bilde.jpg"
    path.write_bytes(change((IMAGES / "turned.jpg").read_bytes()))
    with pytest.raises(InvalidInput, match=r"^.*skadd bilde\.jpg: .*$"):
        alone(small, asked(path))


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a file but a folder"):
        read_image(tmp_path)
