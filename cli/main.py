"""The program: its commands, and the one place where exceptions become a line of advice and an exit code."""

import errno
import gc
import logging
import os
import signal
import sys
import warnings
from types import FrameType
from typing import Any

import click

from ..errors import BorealisError, EncoderWarning
from ..terminal_escape import escape_line
from .bench import bench
from .chat import chat
from .check import check
from .common_options import show
from .convert import convert
from .convert_lora import convert_lora
from .devices import devices
from .entry_point import STOPPED
from .inspect import inspect
from .modelfile import modelfile
from .quantize import quantize
from .run import run
from .serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="borealis-gguf", prog_name="borealis-gguf")
def cli() -> None:
    """From a Borealis checkpoint to GGUF files that run: converted and quantized in one pass, byte for byte what
    llama.cpp makes.

    \b
    Examples:
      borealis-gguf convert NbAiLab/borealis-4b
      borealis-gguf quantize Q4_K_M Q8_0 -m ./borealis-4b -o ./gguf
      borealis-gguf check gguf/borealis-4b-Q4_K_M.gguf --against ./borealis-4b
      borealis-gguf run gguf/borealis-4b-Q4_K_M.gguf "Kva heiter hovudstaden i Noreg?"
      borealis-gguf chat gguf/borealis-4b-Q4_K_M.gguf
    """


for command in (convert, convert_lora, quantize, check, run, chat, serve, modelfile, inspect, devices, bench):
    cli.add_command(command)


def main() -> None:
    """Run the command line; exits 0, 1 (failed), 2 (unusable input), 130 (Ctrl-C) or 143 (terminated)."""
    code = _guarded()
    gc.freeze()  # Python's end would look for cycles among all that is left, twice, while a user waits
    sys.exit(code)


def _replace_closed_streams() -> None:
    """Open the null device for streams that are closed: else the next file that is opened would take their places.

    Exits with 2 when that is standard output, where results would be lost.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        fd = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
        os.set_inheritable(fd, True)
        setattr(sys, name, os.fdopen(fd, "r" if name == "stdin" else "w", encoding="utf-8"))
    if "stdout" in closed:
        click.echo("Error: standard output is closed; send it to a file, or to /dev/null", err=True)
        sys.exit(2)


def _guarded() -> int:
    try:
        _prepare()
        return cli.main(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BorealisError as error:
        show(f"Error: {escape_line(str(error))}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _stopped(signal.SIGINT)
    except _Terminated:
        return _stopped(signal.SIGTERM)
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        show(f"Error: {escape_line(_os_fault(error))}", err=True)
        _drop_output()
        return 1


def _drop_output() -> None:
    """What could not be written to standard output is not tried again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _os_fault(error: OSError) -> str:
    """What the system refused, in one line."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}: allow more at once (ulimit -n)"
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if error.errno == errno.ENOENT:  # what `getcwd` says
        return "the folder you stand in is gone; change to another"
    return f"standard output: {error.strerror or error}"


class _LogFormatter(logging.Formatter):
    """One line, in which no text of a file can command the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_line(super().format(record))


def _log_handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(_LogFormatter("%(levelname)s: %(message)s"))
    return handler


class _Terminated(SystemExit):
    """SIGTERM came."""


def _prepare() -> None:
    """Take over signals, logging, warnings and the standard streams."""
    _replace_closed_streams()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    logging.basicConfig(level=logging.WARNING, handlers=[_log_handler()])
    logging.getLogger("huggingface_hub").propagate = False  # it prints its messages itself
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore[reportAttributeAccessIssue]


def _stopped(signum: int) -> int:
    """Say so, undisturbed by a second signal; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    click.echo(STOPPED, err=True)
    return 128 + signum


_python_shows = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Our own warning as one line; where in the code it was given says nothing to a user."""
    if issubclass(category, EncoderWarning):
        logging.getLogger("borealis_gguf").warning("%s", message)
    else:
        _python_shows(message, category, *place, **more)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated(128 + signum)
