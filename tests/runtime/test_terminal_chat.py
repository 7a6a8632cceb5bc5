"""The chat in the terminal: the loop with typed lines and a real model, real processes, a real pseudo-terminal."""

import io
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from borealis_gguf.runtime.events import Options, Usage
from borealis_gguf.runtime.model import Model, load
from borealis_gguf.runtime.process.isolated_model import IsolatedModel
from borealis_gguf.runtime.terminal.chat_commands import COMMANDS, typed_path
from borealis_gguf.runtime.terminal.chat_loop import HOW_TO_LEAVE, ChatLoop, UserMessage, greeting, stats_line
from borealis_gguf.runtime.terminal.terminal_escape import escape_terminal
from borealis_gguf.runtime.terminal.terminal_io import PipeReader, Screen, UserInput, read_input

from ..cli.test_cli import BOOT, run
from ..helpers.paths import DATA
from ..helpers.serving import until
from ..helpers.vision_models import SEEING
from .test_isolated_model import LOADING, child, dying
from .test_vision import made

IMAGES = DATA / "images"
WILD = ["/set temperature 100", "/set top_k 0", "/set top_p 1"]
"""Any token at all may come: the answer hardly ends, and has control characters."""


ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


class Typed:
    """Somebody who types what was planned; an exception is a key."""

    interactive = True

    def __init__(self, *lines: str | BaseException | type[BaseException]) -> None:
        self.lines, self.prompts = list(lines), []

    def line(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, str):
            return line
        raise line


class Terminal(io.StringIO):
    """Text that believes it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Seen:
    """A chat that is over: what stood where."""

    chat: ChatLoop
    out: str
    err: str
    prompts: list[str]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.chat.conversation.messages


def talk(model: Model, *lines: Any, seed: int | None = 1, **options: Any) -> Seen:
    reader, out, err = Typed(*lines), io.StringIO(), io.StringIO()
    chat = ChatLoop(model, reader, Screen(out, err), options=Options(seed=seed, max_tokens=12), **options)
    chat.run()
    return Seen(chat, out.getvalue(), err.getvalue(), reader.prompts)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def model(nano_q8: Path) -> Iterator[Model]:
    with load(nano_q8, seed=1, context=1024) as loaded:
        yield loaded


def answer(model: Model, *turns: dict[str, Any], seed: int) -> str:
    return model.chat(turns, Options(seed=seed, max_tokens=12)).text()


def test_a_conversation(model: Model) -> None:
    first = answer(model, user("Hei!"), seed=1)
    said = {"role": "assistant", "content": first}
    second = answer(model, user("Hei!"), said, user("Og nå?"), seed=2)
    seen = talk(model, "Hei!", "  ", "Og nå?")
    assert first and second
    assert seen.messages == [user("Hei!"), said, user("Og nå?"), {"role": "assistant", "content": second}]
    assert seen.out.split() == f"{first}\n{second}\n".split() and seen.out.endswith("\n")
    assert not seen.chat.errors_shown


def test_lines_that_go_on(model: Model) -> None:
    seen = talk(model, "Ein\\", "to\\", "tre", '"""', "/quit", "", "  to", '"""', '"""Kort"""', "//etc er ein mappe")
    assert [m["content"] for m in seen.messages if m["role"] == "user"] == [
        "Ein\nto\ntre", "/quit\n\n  to", "Kort", "/etc er ein mappe",
    ]  # fmt: skip
    assert seen.prompts[:5] == ["> ", "… ", "… ", "> ", "… "]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['"""a', "b"], UserInput("a\nb", True)),
        (["a\\"], UserInput("a")),
        (['  """', "a", 'b"""  '], UserInput("a\nb", True)),
        (["a\\ ", "b"], UserInput("a\\ ")),
    ],
)
def test_where_an_input_ends(lines: list[str], said: UserInput) -> None:
    assert read_input(Typed(*lines), "> ") == said


def test_lines_of_a_pipe() -> None:
    pipe = PipeReader(io.BytesIO("\ufeffblåbær\r\n\udcff\nslutt".encode("utf-8", "surrogateescape")))
    assert [pipe.line("> ") for _ in range(3)] == ["blåbær", "\ufffd", "slutt"]
    with pytest.raises(EOFError):
        pipe.line("> ")


def test_system(model: Model) -> None:
    seen = talk(model, "/system", "/system Svar på nynorsk.", "/system", "Hei", "/clear", '/system ""', system="Kort.")
    assert seen.err.splitlines()[:3] == [
        "System message: Kort.", "System message set.", "System message: Svar på nynorsk.",
    ]  # fmt: skip
    assert "The system message stays." in seen.err and "System message removed." in seen.err
    assert seen.messages == []
    seen = talk(model, "/system Svar på nynorsk.", "Hei", system="Kort.")
    assert seen.messages[0] == {"role": "system", "content": "Svar på nynorsk."}
    assert seen.messages[2]["content"] == answer(model, *seen.messages[:2], seed=1)


def test_clear(model: Model) -> None:
    assert talk(model, "Hei", "/clear").messages == []
    seen = talk(model, "Hei", "/clear", "/regenerate")
    assert "Error: nothing to answer again" in seen.err


def test_regenerate(model: Model) -> None:
    seen = talk(model, "Hei!", "/regenerate", "/regenerate")
    answers = [answer(model, user("Hei!"), seed=seed) for seed in (1, 2, 3)]
    assert len(set(answers)) == 3
    assert seen.messages == [user("Hei!"), {"role": "assistant", "content": answers[2]}]
    assert seen.out == "".join(f"{text}\n" for text in answers)


def test_stats(model: Model) -> None:
    seen = talk(model, "/stats", "Hei!", "Og?", "/stats", "Nei")
    lines = [line for line in seen.err.splitlines() if " tokens/s" in line]
    assert len(lines) == 2
    pattern = (
        r"\d+ prompt tokens(?: \((\d+) cached\))? · \d+ tokens · [\d.]+ tokens/s · first after \d\.\d\d s · [a-z]+"
    )
    assert all(re.fullmatch(pattern, line) for line in lines)
    assert (match := re.fullmatch(pattern, lines[1])) and int(match[1]) > 10
    assert (
        stats_line(Usage(10, 4, 21, 0.5, 2.0), 0.25, "stop")
        == "10 prompt tokens (4 cached) · 21 tokens · 10.0 tokens/s · first after 0.25 s · stop"
    )
    assert stats_line(Usage(10), None, "cancelled") == "10 prompt tokens · 0 tokens · cancelled"


def test_set(model: Model) -> None:
    seen = talk(model, "/set temperature 0,5", "/set top_k=4", "/set", "/set seed 9", "Hei", "/set temperature default")
    assert seen.chat.options.sampling == {"top_k": 4.0}
    assert "Set: temperature 0.5, top_k 4, max_tokens 12, seed 1. There are temperature, top_k" in seen.err
    expected = model.chat(
        [user("Hei")], Options(seed=9, max_tokens=12, sampling={"temperature": 0.5, "top_k": 4})
    ).text()
    assert seen.messages[1]["content"] == expected


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/sett x", "/sett: no such command; did you mean /set? A message that begins with a slash is written //…"),
        ("/usr/bin", "/usr/bin: no such command; /help lists them. A message"),
        ("/", "/: no such command"),
        ("/save", "/save what? It is /save FILE"),
        ("/load  ", "/load what? It is /load FILE"),
        ("/image", "/image what? It is /image FILE"),
        ("/image x.png", "this model cannot see: there is no mmproj-nano-nb-7m-F16.gguf beside it; give one with"),
        ("/set temprature 1", "temprature: no such setting; there are temperature"),
        ("/set temprature default", "temprature: no such setting"),
        ("/set temperature varm", "temperature: 'varm' is not a number"),
        ("/set temperature -1", "temperature: -1.0 is not within"),
        ("/set temperature", "/set temperature to what? A number, or default"),
        ("/set max_tokens 0", "max_tokens: '0' is not a whole number, 1 or more"),
        ("/set seed 1.5", "seed: '1.5' is not a whole number, 0 or more"),
        ("/set seed 4294967295", "seed: 4294967295 is not within"),
        ("/load /ikkje/her", "/ikkje/her"),
        ("/save " + "x" * 5000, "not a file name"),
        ("x " * 3000, "the context 1024; shorten it"),
    ],
)
def test_errors_are_told_and_the_chat_goes_on(model: Model, line: str, error: str) -> None:
    seen = talk(model, line, "Hei")
    assert seen.err.startswith("Error: ") and error in seen.err
    assert seen.chat.errors_shown == 1
    assert [m["role"] for m in seen.messages] == ["user", "assistant"]


def test_help_names_every_command(model: Model) -> None:
    seen = talk(model, "/help")
    assert all(f"/{name}" in seen.err for name in COMMANDS)
    assert "/save FILE" in seen.err and "Ctrl-C stops the answer" in seen.err


def test_quit_and_the_keys_that_leave(model: Model) -> None:
    seen = talk(model, KeyboardInterrupt, "/quit", "never read")
    assert seen.err == "Ctrl-D or /quit leaves.\n" and seen.chat.reader.lines == ["never read"]  # type: ignore[attr-defined]
    assert talk(model, EOFError, "never read").messages == []


def test_save_and_load(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "blå bær.samtale"
    seen = talk(model, "Hei!", f'/save "{path}"', f"/save {path}", system="Kort.")
    assert seen.err.count(f"Saved 2 messages to {path}.") == 2
    loaded = talk(model, "Gløymt", f"/load '{path}'", "Og?", seed=2)
    assert f"Loaded 2 messages from {path}." in loaded.err
    assert loaded.messages[:3] == seen.messages and len(loaded.messages) == 5
    foreign = tmp_path / "brev.txt"
    foreign.write_text("Kjære deg", encoding="utf-8")
    refused = talk(model, f"/save {foreign}", f"/load {foreign}", f"/save {tmp_path}", f"/save {tmp_path / 'x' / 'y'}")
    assert foreign.read_text(encoding="utf-8") == "Kjære deg"
    assert [line.partition(": ")[2].partition(": ")[2] for line in refused.err.splitlines()] == [
        "is there already, and no saved conversation; choose another name", "not a saved conversation",
        "a folder; name a file in it", "cannot be written (No such file or directory)",
    ]  # fmt: skip


def test_paths_as_they_are_typed_and_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = tmp_path / "blå bær" / "d'or å.png"
    path.parent.mkdir()
    path.touch()
    ways = [str(path), f'"{path}"', "blå bær/d'or å.png", "~/blå bær/d'or å.png"]
    if os.name != "nt":
        ways += [str(path).replace(" ", "\\ ").replace("'", "\\'"), "'{}'".format(str(path).replace("'", "'\\''"))]
    assert [typed_path(way) for way in ways] == [path] * len(ways)
    assert typed_path("'ny fil'") == tmp_path / "ny fil"
    assert typed_path("ny fil") == tmp_path / "ny fil"


def test_images(tmp_path: Path) -> None:
    path = made(SEEING[0], tmp_path)
    picture = tmp_path / "blå bær å.png"
    picture.write_bytes((IMAGES / "exact.png").read_bytes())
    with load(path, context=256) as model:
        assert "sees images" in greeting(model)
        seen = talk(model, f"/image {picture}", f'/image "{picture}"', "Kva ser du?", "Og no?", f"/image {path}")
        assert seen.prompts == ["> ", "[1 image] > ", "[2 images] > ", "> ", "> ", "> "]
        text = {"type": "text", "text": "Kva ser du?"}
        assert seen.messages[0]["content"] == [{"type": "image", "path": str(picture)}] * 2 + [text]
        assert seen.messages[2] == user("Og no?")
        assert seen.err.startswith("blå bær å.png goes with the next message.\n")
        assert f"Error: {path}: not a PNG, JPEG or WebP" in seen.err
        picture.unlink()
        gone = talk(model, f"/image {picture}")
        assert "blå bær å.png" in gone.err and gone.chat.errors_shown == 1


def test_a_model_that_cannot_chat(nano_q8: Path, tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    path.write_bytes(nano_q8.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_tempLATE"))
    done = run("chat", path, text="Hei\n")
    assert (
        done.returncode == 2
        and done.stderr == f"Error: {path}: has no chat template, so it is no chat model; see run --raw\n"
    )


def test_a_conversation_outgrows_the_context(nano_q8: Path) -> None:
    lines = [f"{n} " * 60 for n in range(4)]
    with load(nano_q8, context=256) as model:
        seen = talk(model, *lines)
        assert not seen.chat.errors_shown and len(seen.messages) == 8
        refused = talk(model, *lines, overflow="error")
        assert "the context 256; shorten it" in refused.err and refused.chat.errors_shown


def test_help() -> None:
    done = run("chat", "--help")
    assert done.returncode == 0 and "Examples:" in done.stdout and "/help" in done.stdout


def test_escape_terminal() -> None:
    attack = "blå\t\x1b]0;eigd\x07\x1b[2J\r\n\x9b31m\x7f\x00\u202egnp.exe\u2066😀👩‍👧"
    assert escape_terminal(attack) == "blå\t^[]0;eigd^G^[[2J^M\n<U+009B>31m^?^@<U+202E>gnp.exe<U+2066>😀👩‍👧"
    assert escape_terminal("Æ ø å – «sitat»\n") == "Æ ø å – «sitat»\n"


@pytest.fixture(scope="module")
def attacker(nano_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose words are commands to terminals."""
    data = nano_q8.read_bytes()
    for word, command in (("▁i", b"\x1b[2J"), ("▁er", b"\x1b]0;\x07"), (",", b"\r"), ("▁av", b"\x1b[9m\x08")):
        size = struct.pack("<Q", len(word.encode()))
        data = data.replace(size + word.encode(), size + command, 1)
    path = tmp_path_factory.mktemp("attacker") / "attacker.gguf"
    path.write_bytes(data)
    return path


def test_no_control_character_of_a_model_reaches_a_terminal(attacker: Path) -> None:
    with load(attacker, context=512) as model:
        for out in (Terminal(), io.StringIO()):
            chat = ChatLoop(model, Typed("Fortell om Norge."), Screen(out, io.StringIO()), options=Options(seed=4))
            chat.run()
            said = chat.conversation.messages[-1]["content"]
            assert "\x1b[2J" in said
            assert out.getvalue().rstrip("\n") == (escape_terminal(said) if out.isatty() else said).rstrip("\n")
    assert "\x1b" not in escape_terminal(said)


def test_ctrl_c_does_not_wait_for_a_model_that_is_loaded_again(nano_q8: Path, tmp_path: Path) -> None:
    """Its process is killed, and the next one takes a minute; the prompt comes back at once."""
    code = f"""
import os
try: os.close(os.open({str(tmp_path / "mark")!a}, os.O_CREAT | os.O_EXCL))
except FileExistsError: time.sleep(60)
ready()
time.sleep(60)
"""
    model = Model(nano_q8, IsolatedModel(nano_q8, LOADING, command=child(code)))
    assert isinstance(model.backend, IsolatedModel)
    model.backend._worker._process.kill()
    until(lambda: model.backend._worker.ended is not None)  # type: ignore[attr-defined]
    err = io.StringIO()
    chat = ChatLoop(model, Typed("Hei", "/quit"), Screen(io.StringIO(), err))
    press = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    press.start()
    begun = time.monotonic()
    chat.run()
    model.close()
    assert time.monotonic() - begun < 2
    assert err.getvalue() == f"{HOW_TO_LEAVE}\n" and chat.unanswered == UserMessage("Hei")


def test_a_later_ctrl_c_leaves_an_answer_that_does_not_stop(nano_q8: Path) -> None:
    """Its process sends a text, and then nothing more."""
    code = """
ready()
number = json.loads(sys.stdin.readline())["id"]
send(id=number, value=None)
send(id=number, event=["text", "Hei", []])
time.sleep(60)
"""
    model = Model(nano_q8, IsolatedModel(nano_q8, LOADING, command=child(code)))
    out, err = io.StringIO(), io.StringIO()
    chat = ChatLoop(model, Typed("Hei", "/quit"), Screen(out, err))

    def press() -> None:
        until(lambda: out.getvalue() != "")
        for pause in (0.05, 0.2, 0.5, 0):  # only the last one comes late
            signal.raise_signal(signal.SIGINT)
            time.sleep(pause)

    thread = threading.Thread(target=press)
    thread.start()
    begun = time.monotonic()
    chat.run()
    seconds = time.monotonic() - begun
    thread.join()
    model.close()
    assert 0.5 < seconds < 3 and HOW_TO_LEAVE in err.getvalue()


@pytest.mark.parametrize(("setting", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours(setting: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_COLOR": "", "TERM": "xterm", **setting}.items():
        monkeypatch.setenv(name, value)
    err = Terminal()
    Screen(io.StringIO(), err).show_error("x\x1b")
    if sys.platform != "win32":
        assert err.getvalue() == ("\x1b[31mx^[\x1b[0m\n" if coloured else "x^[\n")
    plain = io.StringIO()
    Screen(io.StringIO(), plain).show_error("x")
    assert plain.getvalue() == "x\n"


def test_progress_is_taken_away() -> None:
    err = Terminal()
    screen = Screen(io.StringIO(), err, colour=False)
    screen.progress("Loading x", 0.5)
    screen.progress("Loading x", 1)
    screen.clear()
    screen.clear()
    assert err.getvalue() == "\rLoading x  50%\rLoading x 100%\r              \r"


def test_ctrl_c_stops_the_answer_alone(model: Model) -> None:
    out, err = io.StringIO(), io.StringIO()
    reader = Typed(*WILD, "Hei", "/set top_k 1", "/set max_tokens 3", "Og?")
    chat = ChatLoop(model, reader, Screen(out, err), options=Options(seed=1))

    def press() -> None:
        while len(out.getvalue()) < 20:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=press)
    thread.start()
    chat.run()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert err.getvalue().count("(stopped)") == 1
    roles = [message["role"] for message in chat.conversation.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    kept = chat.conversation.messages[1]["content"]
    assert len(kept) >= 20 and out.getvalue().startswith(kept)


def test_ctrl_c_before_the_first_text(model: Model) -> None:
    """The message leaves the history, which a template might refuse with two of a kind in a row; it can be repeated."""
    long = "ord " * 700
    reader, err = Typed(long, "Hei", "/clear", long, "/regenerate"), io.StringIO()
    chat = ChatLoop(model, reader, Screen(io.StringIO(), err), options=Options(seed=1, max_tokens=3))
    start = model.backend.start
    presses = [True, False, True, False]

    def pressed(*args: Any) -> Any:
        stop = start(*args)
        if presses.pop(0):
            signal.raise_signal(signal.SIGINT)
        return stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.backend, "start", pressed)
        chat.run()
    assert err.getvalue().count("No answer; the message is not kept. /regenerate asks it again.") == 2
    assert [m["content"] == long.strip() for m in chat.conversation.messages] == [True, False]
    assert not chat.errors_shown


def test_the_death_of_the_model_is_survived(nano_q8: Path, tmp_path: Path) -> None:
    patch = f"""
from pathlib import Path
mark = Path({str(tmp_path / "died")!a})
def die(self, cells):
    left[0] += 1
    if left[0] > 9 and not mark.exists():
        mark.touch()
        faulthandler._sigsegv()
    return decode(self, cells)
Engine.decode = die
"""
    loading = {**LOADING, "context": 512, "parallel": 1}
    with Model(nano_q8, IsolatedModel(nano_q8, loading, command=dying(nano_q8, patch))) as model:
        seen = talk(model, "/set max_tokens 4", "Hei!", "/set max_tokens 30", "Fortell!", "/regenerate", "Ja?")
    assert re.search(
        r"^Error: llama.cpp died \([^)]+\) while writing the answer; .*\. The next message starts the model again; "
        r"/regenerate repeats this one\.$",
        seen.err,
        re.MULTILINE,
    )
    assert seen.chat.errors_shown == 1
    said = [m["content"] for m in seen.messages if m["role"] == "user"]
    assert said == ["Hei!", "Fortell!", "Ja?"] and len(seen.messages) == 6


def test_lines_of_a_pipe_are_a_chat(nano_q8: Path, tmp_path: Path) -> None:
    lines = "/set max_tokens 5\nHei!\n/system Svar kort.\n//x\\\ny\n/save samtale\n"
    options = ("--seed", "3", "--temperature", "0.5", "--context", "512", "--threads", "1")
    done = run("chat", nano_q8, *options, "--stats", text=lines, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count(" tokens/s · ") == 2 and "\x1b" not in done.stderr + done.stdout
    again = run("chat", nano_q8, *options, text=lines.replace("samtale", "to"), cwd=tmp_path)
    assert again.stdout == done.stdout != ""
    loaded = run("chat", nano_q8, text="/load samtale\n/quit\nHei\n", cwd=tmp_path)
    assert (loaded.returncode, loaded.stdout) == (0, "")
    assert loaded.stderr == f"Loaded 4 messages from {tmp_path / 'samtale'}.\n"
    wrong = run("chat", nano_q8, text="/lod x\nHei\n", cwd=tmp_path)
    assert wrong.returncode == 1 and "did you mean /load?" in wrong.stderr and wrong.stdout


class Pseudo:
    """A real `borealis-gguf` on a pseudo-terminal."""

    def __init__(self, home: Path, *args: str | Path) -> None:
        import pty

        own = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        self.master, slave = pty.openpty()
        env = ENV | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "BOREALIS_GGUF_CACHE": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", own + BOOT, *map(str, args)],
            stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            if not data:
                return
            self.seen += data.decode("utf-8", "replace")

    def wait(self, text: str, after: int = 0, seconds: float = 30) -> int:
        """Until `text` is shown after that place; the place behind it."""
        end = time.monotonic() + seconds
        while (at := self.seen.find(text, after)) < 0:
            assert time.monotonic() < end, self.seen[after:]
            time.sleep(0.005)
        return at + len(text)

    def type(self, keys: str) -> int:
        """Press keys; the place where the screen was before."""
        place = len(self.seen)
        os.write(self.master, keys.encode())
        return place

    def end(self) -> int:
        code = self.process.wait(20)
        self._reader.join(5)
        os.close(self.master)
        return code


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals that Python can open")
def test_a_real_terminal(nano_q8: Path, tmp_path: Path) -> None:
    home = tmp_path / "cache"
    shown = Pseudo(home, "chat", nano_q8, "--seed", "1")
    place = shown.wait("> ", shown.wait("/help tells what can be typed."))
    for line in WILD:
        shown.type(f"{line}\r")
        place = shown.wait("> ", shown.wait(f"{line.split()[1]} is", place))
    place = shown.wait("\n", shown.type("Fortell om blåbær\r"))
    while len(shown.seen) < place + 300:
        time.sleep(0.005)
    place = shown.wait("> ", shown.wait("(stopped)", shown.type("\x03")))
    place = shown.wait("> ", shown.wait("Ctrl-D or /quit leaves.", shown.type("\x03")))
    shown.type("/sys\t")  # completed
    shown.wait("/system", place)
    shown.type("\x03")  # what was typed is thrown away
    shown.wait("> ", shown.wait("seed is 5.", shown.type("/set seed 5\r")))
    shown.type("\x1b[200~/system Linje 1\nLinje 2\x1b[201~\r")
    shown.wait("> ", shown.wait("System message set."))
    shown.type("\x04")
    assert shown.end() == 0
    assert "\x1b[2m" in shown.seen and "Traceback" not in shown.seen
    assert (home / "chat-history").stat().st_mode & 0o777 == 0o600

    again = Pseudo(home, "chat", nano_q8)
    again.wait("> ", again.wait("/help tells"))
    place = again.type("\x1b[A\r")  # the line before, of the last session
    again.wait("> ", again.wait("System message set.", place))
    place = again.type("/system\r")
    again.wait("> ", again.wait("Linje 2", again.wait("System message: Linje 1", place)))
    again.type("/quit\r")
    assert again.end() == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals that Python can open")
def test_run_shows_control_characters(attacker: Path, tmp_path: Path) -> None:
    """To a file they go as they are."""
    options = ("run", attacker, "Fortell om Norge.", "--seed", "4", "-n", "80", "-q")
    with subprocess.Popen([sys.executable, "-c", BOOT, *map(str, options)], stdout=subprocess.PIPE, env=ENV) as done:
        plain = done.communicate()[0].decode("utf-8")
    assert "\x1b[2J" in plain
    shown = Pseudo(tmp_path, *options)
    assert shown.end() == 0
    assert shown.seen.replace("\r\n", "\n") == escape_terminal(plain)
