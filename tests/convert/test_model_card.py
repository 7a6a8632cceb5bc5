"""Front matter that is damaged, or that names somebody's folders: what can be published is kept, with one warning."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from borealis_gguf import api
from borealis_gguf.checkpoint.folder import Checkpoint, open_checkpoint
from borealis_gguf.checkpoint.gguf import read_gguf
from borealis_gguf.cli.main import cli
from borealis_gguf.convert.describe import describe
from borealis_gguf.convert.metadata.general import general_kv
from borealis_gguf.errors import InvalidInput

from ..helpers.checkpoints import Miniature, config


def general(folder: Path, readme: str | bytes, **settings: Any) -> dict[str, Any]:
    """The general keys, without those that the folder's name and the number of weights give."""
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_bytes(readme.encode() if isinstance(readme, str) else readme)
    entries = general_kv(Checkpoint(folder, None, {}, {}, **settings), 4_000_000_000)
    found = {kv.key.removeprefix("general."): kv.value for kv in entries}
    return {key: value for key, value in found.items() if (key, value) not in (("name", "M"), ("size_label", "4.0B"))}


def front(text: str) -> str:
    return f"---\n{text}\n---\n# Title\n\nlicense: prose\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "m"


GOOD = "license: gemma\nauthor: Åse\nlanguage: [nb, no]"
FOUND = {"license": "gemma", "author": "Åse", "languages": ("nb", "no")}


# --- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig CRLF", "utf-16 CR", "bad prose"]
)
def test_encodings(folder: Path, encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    name, _, ending = encoding.partition(" ")
    text = front(GOOD).replace("\n", {"CRLF": "\r\n", "CR": "\r"}.get(ending, "\n"))
    data = front(GOOD).encode() + b"\xe5\xff" if name == "bad" else text.encode(name)
    assert general(folder, data) == FOUND and not caplog.records


def test_utf_16_with_the_other_byte_order_mark(folder: Path) -> None:
    assert general(folder, b"\xfe\xff" + front(GOOD).encode("utf-16-be")) == FOUND


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_latin_1(folder: Path, encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    assert general(folder, front(GOOD).encode(encoding)) == FOUND
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'README.md'}: front matter that is not UTF-8; it is read as Windows-1252"
    ]
    mixed = b"---\nlicense: \xc5\nauthor: " + "Åse “A”".encode() + b"\n---\n"
    assert general(folder, mixed) == {"license": "Å", "author": "Åse “A”"}


# --- ends and YAML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n", "\n---", "\n--- \n", "\n---\nprose: [\n"])
def test_closing_marks(folder: Path, end: str, caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp's converter takes the rest of the file where nothing closes the block."""
    assert general(folder, f"---\n{GOOD}{end}") == FOUND and not caplog.records


@pytest.mark.parametrize("after", ["\n\nSome prose: with a colon: here\n", "\n# Title\n\nlicense: prose\nx: {\n"])
def test_an_unclosed_block_ends_where_prose_begins(folder: Path, after: str, caplog: pytest.LogCaptureFixture) -> None:
    assert general(folder, f"---\n{GOOD}{after}") == FOUND
    assert "front matter that is not YAML (line " in caplog.text and "left out" not in caplog.text
    long = "".join(f"[link {n}](https://x/{n}) " for n in range(20000))
    assert general(folder, f"---\n{GOOD}\n\n{long}") == FOUND


@pytest.mark.parametrize(
    ("text", "found", "lost"),
    [
        ("license: [gemma\nauthor: Åse", {"author": "Åse"}, "license"),
        ("author: Åse\nlicense: [gemma", {"author": "Åse"}, "license"),
        ("author: Åse\n<<<<<<< HEAD\nlicense: mit\n=======\nlicense: gemma", {"author": "Åse", "license": "gemma"}, ""),
        ("model_description: A model: small\nlicense: mit", {"description": "A model: small", "license": "mit"}, ""),
        ("author: @ase\nlicense: `mit`\nversion: %1", {"author": "@ase", "license": "`mit`", "version": "%1"}, ""),
        (
            "tags:\n- a\n- b\nauthor: 'Åse\nlicense:\n  - mit\n  - gemma",
            {"tags": ("a", "b"), "license": "mit,gemma"},
            "author",
        ),
        ("a: !!timestamp x\nb: !!bool x\nlicense: mit", {"license": "mit"}, ""),
        ("license: !!python/object/apply:os.system [x]\nauthor: Åse", {"author": "Åse"}, "license"),
        (
            "license: !!int x\nauthor: !!bool x\nversion: !!timestamp x\nname: Q",
            {"name": "Q"},
            "author, license, version",
        ),
        ("license: &a [*a, *b]\nauthor: Åse", {"author": "Åse"}, "license"),
        ("author: Åse\nx: \x07\ntags: [\x07]", {"author": "Åse"}, "tags"),
        ("author: Åse\nlicense:\n" + "- " * 5000, {"author": "Åse"}, "license"),
        ("author: Åse\n license: mit\n]", {}, "author"),
        ("[", {}, ""),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else None,
)
def test_broken_yaml(
    folder: Path, text: str, found: dict[str, Any], lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert general(folder, front(text)) == found
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{folder / 'README.md'}: front matter that is not YAML (")
    assert message.endswith(f"), so it is read key by key{f'; left out: {lost}' if lost else ''}")
    assert message.isprintable() and len(message) < 400 + len(str(folder))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 50000, "more than 1000 brackets"),
        ("a: " + "x" * 200000, "more than 65536 characters"),
        ("license: mit\n" * 100000, "more than 65536 characters"),
    ],
    ids=["brackets", "characters", "a megabyte"],
)
def test_front_matter_that_costs_too_much_is_ignored(
    folder: Path, text: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    assert general(folder, front(f"author: Åse\n{text}")) == {}
    assert f"README.md: front matter with {words}; the model card is ignored" in caplog.text
    assert time.monotonic() - began < 2


def test_many_broken_keys_are_bounded(folder: Path) -> None:
    began = time.monotonic()
    general(folder, front("\n".join(f"k{n}: [" for n in range(500)) + "\nlicense: x\n" + "license: [\n" * 400))
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("text", ["", "# Only prose\n", "---\n- a list\n---\n", "---\n---\n", "---\n"])
def test_cards_without_keys(folder: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert general(folder, text) == {} and not caplog.records


def test_a_card_that_cannot_be_opened(tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    (tmp_path / "elsewhere.md").write_text(front("license: mit"))
    (folder / "README.md").symlink_to(tmp_path / "elsewhere.md")
    checkpoint = Checkpoint(folder, None, {}, {})
    assert "general.license" not in {kv.key for kv in general_kv(checkpoint, 1)}
    assert "a link out of the checkpoint" in caplog.text and "; the model card is ignored" in caplog.text
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    assert "general.license" not in {kv.key for kv in general_kv(checkpoint, 1)}
    assert "not a file but a folder" in caplog.text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("base_model:\n- null", {}),
        ("base_model: [null, a/b]", {"base_model.count": 1, "base_model.0.repo_url": "https://huggingface.co/a/b"}),
        ("base_model:", {"base_model.count": 0}),
        ("base_model: []", {"base_model.count": 0}),
        ("tags: [a, null, b]\nlicense: [mit, ~, gemma]", {"tags": ("a", "b"), "license": "mit,gemma"}),
        ("language:\n-\n- nb\n", {"languages": ("nb",)}),
        ('license: "\\ud800"\nauthor: Åse\ntags: ["\\udfff", a]', {"author": "Åse", "tags": ("a",)}),
    ],
)
def test_items_that_say_nothing(folder: Path, text: str, found: dict[str, Any]) -> None:
    kept = general(folder, front(text))
    assert {k: v for k, v in kept.items() if k[-4:] != "name" and not k.endswith("organization")} == found


# --- local paths ----------------------------------------------------------------------------------------------------

PATHS = (
    "/home/somebody/models/secret/base",
    "/base",
    "~/models/base",
    "~kari/base",
    "./base",
    "../base",
    ".",
    "..",
    "C:\\Users\\somebody\\base",
    "c:/Users/somebody/base",
    "\\\\server\\share\\base",
    "..\\base",
    "file:///home/somebody/base",
    "FILE:base",
    "$HOME/base",
    "${WORK}/base",
    "%USERPROFILE%\\base",
    "$env:USERPROFILE\\base",
    "smb://server/share/base",
)
KEYS = ("name", "author", "version", "organization", "finetune", "basename", "description", "size_label", "license")
KEYS += ("license_name", "license_link", "url", "doi", "uuid", "repo_url", "tags", "language", "base_model", "datasets")


@pytest.mark.parametrize("path", PATHS)
def test_local_paths_are_left_out(folder: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of every key, in lists and objects too; one warning names them."""
    assert general(folder, front("\n".join(f"{key}: '{path}'" for key in KEYS))) == {}
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{folder / 'README.md'}: left out of the GGUF: name ('") and "and 11 more" in message
    objects = "\n".join(f"{key}:\n- {{name: '{path}', url: '{path}', repo_url: '{path}'}}" for key in KEYS[-2:])
    assert general(folder, front(f"tags: ['{path}', a]\n{objects}")) == {"tags": ("a",)}


@pytest.mark.parametrize("name", ["runs/7/checkpoint-500", "models\\base", "a/b/c/"])
def test_base_models_that_are_relative_paths(folder: Path, name: str) -> None:
    assert general(folder, front(f"base_model:\n- {name}\n- NbAiLab/borealis-4b\ndatasets: {name}")) == {
        "base_model.count": 1,
        "base_model.0.name": "Borealis 4b",
        "base_model.0.organization": "NbAiLab",
        "base_model.0.repo_url": "https://huggingface.co/NbAiLab/borealis-4b",
    }


@pytest.mark.parametrize(
    "text",
    [
        *(
            "Trained from /home/kari/x.",
            "See https://a.no and ~/x",
            "at C:\\x",
            "at d:/x",
            "(file:/x)",
            "in “/home/kari/x”",
        ),
        *("on /Volumes/Disk/x", "in /fp/projects01/ec30", "in /projects/nlp/x", "from \\\\server\\share"),
        *("in $SCRATCH/x", "in ${HOME}/x", "in %APPDATA%\\x"),
    ],
)
def test_descriptions_that_mention_a_path(folder: Path, text: str) -> None:
    assert general(folder, front(f"description: '{text}'")) == {}


@pytest.mark.parametrize(
    "text",
    [
        "See https://a.no/home/kari",
        "and/or a / b",
        "in $USD",
        "50 %",
        "og: noko",
        "A/B testing",
        "http://x.no:80/data/y",
    ],
)
def test_descriptions_without_a_path(folder: Path, text: str) -> None:
    assert general(folder, front(f"description: '{text}'")) == {"description": text}


def test_what_is_no_local_path(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "license: other\nlicense_link: LICENSE\nurl: https://x.no/home/kari/../x\ndescription: 'on/off ./. 1/2, C: a'"
    )
    assert general(folder, front(text)) == {
        "license": "other",
        "license.link": "LICENSE",
        "source.url": "https://x.no/home/kari/../x",
        "description": "on/off ./. 1/2, C: a",
    }
    models = ("a/b", "a/b/", "gpt2", "https://huggingface.co/a/b", "https://x.no/a/b/c", "ssh://x/y/z", "hf://a/b")
    assert general(folder, front("base_model: [" + ", ".join(models) + "]"))["base_model.count"] == len(models)
    assert not caplog.records


@pytest.mark.parametrize("path", [*PATHS, "/home/kari/run/17", "runs/7/checkpoint-500"])
def test_the_name_in_config_json(tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Trainers write where the model lay; nothing is lost, so there is no warning."""
    entries = general_kv(Checkpoint(tmp_path / "borealis-4b", None, {"_name_or_path": path}, {}), 4_000_000_000)
    assert [kv.value for kv in entries] == ["Borealis 4b", "borealis", "4B"] and not caplog.records


# --- whole files ----------------------------------------------------------------------------------------------------


def written(path: Path) -> dict[str, Any]:
    return {kv.key: kv.value for kv in read_gguf(path).kv}


def test_one_warning_for_several_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Miniature("m", config(), files={"README.md": front("license: [\nbase_model: /home/kari/x")}).write(
        tmp_path
    )
    checkpoint = open_checkpoint(source)
    for _ in range(2):
        describe(checkpoint, "auto")
    plans = api.plan_quantize(source, ["Q8_0", "Q4_0"], tmp_path)
    assert len(caplog.records) == 4 and len({record.getMessage() for record in caplog.records}) == 2
    api.execute(plans)
    assert len(caplog.records) == 4
    assert not [key for key in written(plans[0].path) if "base_model" in key or "license" in key]


def test_no_card(tmp_path: Path) -> None:
    source = Miniature("m", config(), files={"README.md": front("license: mit\nname: Q")}).write(tmp_path)
    plain = replace(Miniature("m", config()), name="m")
    (tmp_path / "plain").mkdir()
    expected = api.plan_convert(plain.write(tmp_path / "plain"), tmp_path / "m.gguf").header
    assert api.plan_convert(source, tmp_path / "m.gguf").header != expected
    assert api.plan_convert(source, tmp_path / "m.gguf", card=False).header == expected
    for command in (["convert", str(source)], ["quantize", "Q8_0", "-m", str(source)]):
        out = tmp_path / f"{command[0]}.gguf"
        done = CliRunner().invoke(cli, [*command, "-o", str(out), "--no-card", "-q"])
        assert done.exit_code == 0, done.output
        assert written(out)["general.name"] == "M" and "general.license" not in written(out)
    with pytest.raises(InvalidInput, match="--no-card needs a checkpoint; a GGUF keeps its metadata"):
        api.plan_quantize(tmp_path / "convert.gguf", ["Q8_0"], tmp_path / "x.gguf", card=False)


def test_a_block_that_yamls_own_mark_ends(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert general(folder, "---\nlicense: gemma\n...\n# Prose\nlicense: mit\n") == {"license": "gemma"}
    assert not caplog.records


def test_a_merge_key(folder: Path) -> None:
    assert general(folder, front("common: &c {license: mit, author: Kari}\n<<: *c\nauthor: Ola")) == {
        "author": "Ola",
        "license": "mit",
    }
