"""Reading a file on the Hub by ranges: each read is one request, tried again with patience, resumed at the byte.

The Hub answers for a large file with a link to another host that carries its own signature and expires. That link is
used until something goes wrong, then asked for again; the token goes to the Hub alone.
"""

import io
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

from ...errors import STOPPED, BorealisError, Cancelled
from ..types import Remote, Slice
from .errors import ask, client_error
from .retry import TRANSIENT_STATUSES, TransientError, retry_after, with_retries


def open_slice(slice: Slice, stop: threading.Event) -> io.RawIOBase:
    """The file a slice lies in, here or on the Hub."""
    return slice.path.open("rb", buffering=0) if slice.remote is None else RemoteFile(slice.remote, stop)


class RemoteFile(io.RawIOBase):
    """A pinned file, for one thread. Every `readinto` fills its whole buffer with one request, except at the end.

    Raises BorealisError when the file is no longer what was pinned, when the server cannot do ranges or withdraws the
    permission, and when trouble does not pass; Cancelled once `stop` is set: at once between two attempts, else when
    the next bytes come or the network's timeout ends.
    """

    def __init__(self, remote: Remote, stop: threading.Event | None = None) -> None:
        self.remote = remote
        self.stop = stop or threading.Event()
        self.position = 0
        self.location: str | None = None
        self.etags = {remote.url: remote.etag, **dict(remote.copies)}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.remote.size)[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self.remote.size - self.position)]
        got = 0

        def fetch() -> None:
            nonlocal got
            try:
                while got < len(view):
                    for piece in self._range(self.position + got, len(view) - got):
                        view[got : got + len(piece)] = piece
                        got += len(piece)
            except TransientError:
                self.location = None
                raise

        with_retries(self.remote.label, fetch, self.stop)
        self.position += got
        return got

    def _range(self, start: int, nbytes: int) -> Iterator[bytes]:
        """`nbytes` from byte `start`, as they come."""
        from huggingface_hub import constants, get_session

        location = self._locate()
        headers = {"Range": f"bytes={start}-{start + nbytes - 1}", "Accept-Encoding": "identity"}
        headers |= request_headers(with_token=origin(location) == origin(self.remote.url))
        left, name = nbytes, urlsplit(location).hostname
        try:
            with get_session().stream(
                "GET", location, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
            ) as response:
                self._check(response, start, nbytes)
                for piece in response.iter_raw():
                    if self.stop.is_set():
                        raise Cancelled(STOPPED)
                    if len(piece) > left:
                        raise self._broken(f"{host(response)} sent more than the {nbytes} bytes that were asked for")
                    left -= len(piece)
                    yield piece
        except client_error() as error:  # its text may hold the signed link
            raise TransientError(f"the connection to {name} broke ({type(error).__name__})") from None
        if left:
            raise TransientError(f"{name} sent {nbytes - left} of {nbytes} bytes")

    def _locate(self) -> str:
        """Where the bytes are. The Hub is asked at first, and after trouble."""
        if self.location is None:
            size, etag, location = locate(self.remote.url, self.remote.repo_id)
            if (size, etag) != (self.remote.size, self.remote.etag):
                raise self._broken("changed on the Hub while it was read")
            self.location = location
        return self.location

    def _check(self, response: Any, start: int, nbytes: int) -> None:
        """Believe an answer only if it holds exactly what was asked for, unpacked, of the file that was pinned."""
        status, headers, name, held = response.status_code, response.headers, host(response), str(nbytes)
        if status in TRANSIENT_STATUSES:
            raise TransientError(f"{name} answered {status}", retry_after(headers))
        if status in (401, 403, 404, 410):  # an expired link; if it was the permission, the Hub says so next
            raise TransientError(f"{name} answered {status}")
        if headers.get("Content-Encoding", "identity") != "identity":
            raise self._broken(f"{name} sends it packed, which ranges cannot be; leave --stream out")
        if status == 200 and (start, nbytes) != (0, self.remote.size):
            raise self._broken(f"{name} sends whole files and no ranges of them; leave --stream out")
        if status not in (200, 206):
            raise self._broken(f"{name} answered {status} to a request for bytes from {start}")
        range = f"bytes {start}-{start + nbytes - 1}/{self.remote.size}"
        if (status == 206 and headers.get("Content-Range") != range) or headers.get("Content-Length", held) != held:
            raise TransientError(f"{name} sent other bytes than those asked for")
        if origin(str(response.url))[0] != origin(self.remote.url)[0]:
            raise self._broken(f"{name} was reached without encryption, though the Hub is encrypted")
        etag = normal_etag(headers.get("ETag"))
        place = str(response.url).partition("?")[0]  # what follows is a signature, new with every link
        if etag and self.etags.setdefault(place, etag) != etag:
            raise self._broken("changed while it was read; run again")

    def _broken(self, what: str) -> BorealisError:
        return BorealisError(f"{self.remote.label}: {what}")


def locate(url: str, repo_id: str) -> tuple[int | None, str | None, str]:
    """Size and ETag of a file on the Hub, and where its bytes are. Raises TransientError or BorealisError."""
    from huggingface_hub import constants, get_hf_file_metadata

    found = ask(
        lambda: get_hf_file_metadata(url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT),
        repo_id,
    )
    return found.size, found.etag, urljoin(url, found.location)


def request_headers(with_token: bool) -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=None if with_token else False, library_name="borealis-gguf")


def origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def host(response: Any) -> str:
    """The host that answered; a link's path and query may hold a signature."""
    return urlsplit(str(response.url)).hostname or "the server"


def normal_etag(etag: str | None) -> str | None:
    return etag.removeprefix("W/").strip('"') if etag else None
