"""`borealis-gguf serve`."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidInput
from ..runtime.process.child_process import API_KEY_VARIABLE
from .common_options import PATH, loading_options

if TYPE_CHECKING:
    from .. import Model
    from ..runtime.serve.service_state import ServerSettings

MAX_PARALLEL = 64


@click.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--parallel", type=click.IntRange(1, MAX_PARALLEL), default=4, show_default=True, help="Answers made at once."
)
@click.option(
    "--queue", type=click.IntRange(0, 10_000), default=64, show_default=True, help="Requests that may wait for a place."
)
@click.option(
    "--api-key",
    envvar=API_KEY_VARIABLE,
    metavar="KEY",
    help="The key that clients must send. Safer in the environment variable BOREALIS_GGUF_API_KEY.",
)
@click.option("--api-key-file", type=PATH, help="The same, as the first line of a file.")
@click.option("--cors", "origins", multiple=True, metavar="ORIGIN", help="Let pages of ORIGIN ask too; repeatable.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="Another name of this machine; repeatable.")
@click.option("--insecure", is_flag=True, help="Let other machines in without an API key.")
@loading_options
@click.option("--alias", metavar="NAME", help="The model's name in answers. Default: the file's.")
@click.option(
    "--max-body", type=click.FloatRange(0.001, 1000), metavar="MB", help="Largest request. Default: 4; 20 with images."
)
@click.option("--no-page", is_flag=True, help="No chat page at /.")
@click.option("--open", "browse", is_flag=True, help="Open the chat page in the browser.")
@click.option("--log", is_flag=True, help="A line on standard error for every request; never what it says.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.pass_context
def serve(
    ctx: click.Context,
    model: str,
    host: str,
    port: int,
    parallel: int,
    insecure: bool,
    browse: bool,
    quiet: bool,
    loading: dict[str, Any],
    **given: Any,
) -> None:
    """Serve a GGUF model to programs that know OpenAI's API, and to a browser.

    Differences: an answer makes at most one tool call, and tools and response_format are not taken together.

    \b
    Examples:
      borealis-gguf serve borealis-4b-Q4_K_M.gguf
      borealis-gguf serve borealis-4b-Q4_K_M.gguf --open
      borealis-gguf serve borealis-4b-Q4_K_M.gguf --parallel 8 --context 4096 --port 9000
      borealis-gguf serve borealis-4b-Q4_K_M.gguf --host 0.0.0.0 --api-key-file key.txt
    """
    _require_packages()
    from .. import load
    from ..runtime.serve.server import Server, listen, url_of

    settings = _settings(host, **given)
    listener = listen(host, port, local_only=not (settings.key or insecure))
    url = url_of(listener)

    def on_ready(loaded: "Model") -> None:
        if not quiet:
            click.echo(loaded.placement, err=True)
            click.echo(f"Serving {settings.name or loaded.path.stem} at {url} (Ctrl-C ends it)")
        if browse:
            import webbrowser

            webbrowser.open(url)

    load_model = partial(load, model, parallel=parallel, max_queue=settings.queue, isolate=True, **loading)
    try:
        server = Server(lambda progress: load_model(on_progress=progress), settings, on_ready, _progress_line(quiet))
        server.run_until_end(listener)
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        ctx.exit(130)


def _require_packages() -> None:
    """Raises InvalidInput where the packages of the extra `serve` are not installed."""
    for package in ("starlette", "uvicorn", "anyio", "h11"):
        if find_spec(package) is None:
            raise InvalidInput(f'{package} is missing; pip install "borealis-gguf[serve]"')


def _settings(
    host: str,
    *,
    api_key: str | None,
    api_key_file: Path | None,
    origins: Sequence[str],
    hosts: Sequence[str],
    queue: int,
    alias: str | None,
    max_body: float | None,
    no_page: bool,
    log: bool,
) -> "ServerSettings":
    from ..runtime.serve.service_state import PAGE, ServerSettings

    if api_key is not None and api_key_file is not None:
        raise click.UsageError(f"--api-key-file, and --api-key or {API_KEY_VARIABLE}: give one of them")
    return ServerSettings(
        name=alias,
        key=_read_key(api_key_file) if api_key_file is not None else _checked_key(api_key, "--api-key"),
        origins=[origin.rstrip("/") for origin in origins],
        hosts=[host, *hosts],
        queue=queue,
        body_limit=None if max_body is None else int(max_body * 1_000_000),
        page=None if no_page else PAGE,
        log=(lambda line: click.echo(line, err=True)) if log else None,
    )


def _read_key(path: Path) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read ({error})") from None
    return _checked_key(lines[0].strip() if lines else "", str(path))


def _checked_key(key: str | None, source: str) -> str | None:
    """What fits into a header. The key itself is never shown."""
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InvalidInput(f"{source}: an API key is one or more visible ASCII characters without spaces")
    return key


def _progress_line(quiet: bool) -> Callable[[float], None]:
    if quiet or not sys.stderr.isatty():
        return lambda fraction: None

    def show(fraction: float) -> None:
        click.echo("\r\033[K" if fraction >= 1 else f"\rLoading the model: {fraction:.0%}", nl=False, err=True)

    return show
