"""The program: its commands, and the one place where exceptions become a line of advice and an exit code."""

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
from .bench import bench
from .chat import chat
from .check import check
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


def _guarded() -> int:
    try:
        _prepare()
        return cli.main(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BorealisError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _stopped(signal.SIGINT)
    except _Terminated:
        return _stopped(signal.SIGTERM)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Terminated(SystemExit):
    """SIGTERM came."""


def _prepare() -> None:
    """Take over signals, logging, warnings and the standard streams."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
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
