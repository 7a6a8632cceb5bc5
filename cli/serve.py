"""`borealis-gguf serve`."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidInput
from .common_options import PATH, loading_options

if TYPE_CHECKING:
    from ..runtime.model import Model

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
    envvar="BOREALIS_GGUF_API_KEY",
    metavar="KEY",
    help="What clients must know. Better in the environment.",
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
    queue: int,
    api_key: str | None,
    api_key_file: Path | None,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    insecure: bool,
    loading: dict[str, Any],
    alias: str | None,
    max_body: float | None,
    no_page: bool,
    browse: bool,
    log: bool,
    quiet: bool,
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
    try:
        from ..runtime.serve.server import Server, is_loopback, listen, url_of
        from ..runtime.serve.service_state import PAGE, Settings
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "uvicorn", "anyio", "h11"):
            raise
        raise InvalidInput(f'{missing} is missing; pip install "borealis-gguf[serve]"') from None
    from ..runtime.model import load

    if api_key is not None and api_key_file is not None:
        raise click.UsageError("--api-key-file, and --api-key or BOREALIS_GGUF_API_KEY: give one of them")
    key = _key_of(api_key_file) if api_key_file is not None else _checked_key(api_key, "--api-key")
    listener = listen(host, port)
    if not (key or insecure or is_loopback(listener)):
        listener.close()
        raise InvalidInput(f"--host {host}: other machines could use the model; give an --api-key, or say --insecure")
    url = url_of(listener)
    settings = Settings(
        name=alias,
        key=key,
        origins=[origin.rstrip("/") for origin in origins],
        hosts=[host, *hosts],
        queue=queue,
        body_limit=None if max_body is None else int(max_body * 1_000_000),
        page=None if no_page else PAGE,
        log=(lambda line: click.echo(line, err=True)) if log else None,
    )
    loader = partial(load, model, parallel=parallel, max_queue=queue, isolate=True, **loading)

    def on_ready(loaded: "Model") -> None:
        if not quiet:
            click.echo(loaded.placement, err=True)
            click.echo(f"Serving {alias or loaded.path.stem} at {url} (Ctrl-C ends it)")
        if browse:
            import webbrowser

            webbrowser.open(url)

    try:
        server = Server(lambda progress: loader(on_progress=progress), settings, on_ready, _progress_line(quiet))
        server.run_until_end(listener)
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        ctx.exit(130)


def _key_of(path: Path) -> str | None:
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
