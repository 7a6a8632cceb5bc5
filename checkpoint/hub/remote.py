"""Reads byte ranges of a file on the Hub: one request per read, retried and resumed after errors.

For a large file the Hub redirects to a signed URL of another host, which expires. The URL is reused until a request
fails, then requested again; the access token is sent to the Hub only.
"""

import io
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

from ...errors import STOPPED, BorealisError, Cancelled
from ..file_access import ReadOnlyFile
from ..types import Remote, Slice
from .errors import ask, client_error
from .retry import TRANSIENT_STATUSES, TransientError, retry_after, with_retries


def open_slice(slice: Slice, stop: threading.Event) -> io.RawIOBase:
    """Opens the file of a slice, local or on the Hub."""
    return ReadOnlyFile(slice.path) if slice.remote is None else RemoteFile(slice.remote, stop)


class RemoteFile(io.RawIOBase):
    """A file at a pinned revision, for use by one thread. `readinto` fills its whole buffer, except at the end.

    Raises BorealisError when the file has changed, when the server refuses ranges or access, and when all retries
    fail; Cancelled once `stop` is set: immediately between attempts, else with the next bytes or the network timeout.
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
        received = 0

        def fetch() -> None:
            nonlocal received
            try:
                while received < len(view):
                    for piece in self._request_range(self.position + received, len(view) - received):
                        view[received : received + len(piece)] = piece
                        received += len(piece)
            except TransientError:
                self.location = None
                raise

        with_retries(self.remote.label, fetch, self.stop)
        self.position += received
        return received

    def _request_range(self, start: int, nbytes: int) -> Iterator[bytes]:
        """Requests `nbytes` bytes from `start`, and yields them as they arrive."""
        from huggingface_hub import constants, get_session

        location = self._locate()
        headers = {"Range": f"bytes={start}-{start + nbytes - 1}", "Accept-Encoding": "identity"}
        headers |= request_headers(with_token=origin(location) == origin(self.remote.url))
        left, name = nbytes, urlsplit(location).hostname
        try:
            with get_session().stream(
                "GET", location, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
            ) as response:
                self._check_response(response, start, nbytes)
                for piece in response.iter_raw():
                    if self.stop.is_set():
                        raise Cancelled(STOPPED)
                    if len(piece) > left:
                        raise self._error(f"{host(response)} sent more than the {nbytes} bytes that were asked for")
                    left -= len(piece)
                    yield piece
        except client_error() as error:  # its text may hold the signed URL
            raise TransientError(f"the connection to {name} broke ({type(error).__name__})") from None
        if left:
            raise TransientError(f"{name} sent {nbytes - left} of {nbytes} bytes")

    def _locate(self) -> str:
        """Returns the URL of the bytes; asks the Hub for it at first and after a failed request."""
        if self.location is None:
            size, etag, location = locate(self.remote.url, self.remote.repo_id)
            if (size, etag) != (self.remote.size, self.remote.etag):
                raise self._error("changed on the Hub while it was read")
            self.location = location
        return self.location

    def _check_response(self, response: Any, start: int, nbytes: int) -> None:
        """Refuses a response unless it is the requested range, uncompressed, of the pinned file."""
        status, headers, name, length = response.status_code, response.headers, host(response), str(nbytes)
        if status in TRANSIENT_STATUSES:
            raise TransientError(f"{name} answered {status}", retry_after(headers))
        if status in (401, 403, 404, 410):  # an expired URL; for missing permission, the Hub refuses the next request
            raise TransientError(f"{name} answered {status}")
        if headers.get("Content-Encoding", "identity") != "identity":
            raise self._error(f"{name} sends it packed, which ranges cannot be; leave --stream out")
        if status == 200 and (start, nbytes) != (0, self.remote.size):
            raise self._error(f"{name} sends whole files and no ranges of them; leave --stream out")
        if status not in (200, 206):
            raise self._error(f"{name} answered {status} to a request for bytes from {start}")
        range = f"bytes {start}-{start + nbytes - 1}/{self.remote.size}"
        if (status == 206 and headers.get("Content-Range") != range) or headers.get("Content-Length", length) != length:
            raise TransientError(f"{name} sent other bytes than those asked for")
        if origin(str(response.url))[0] != origin(self.remote.url)[0]:
            raise self._error(f"{name} was reached without encryption, though the Hub is encrypted")
        etag = normal_etag(headers.get("ETag"))
        address = str(response.url).partition("?")[0]  # the query is a signature that changes with every redirect
        if etag and self.etags.setdefault(address, etag) != etag:
            raise self._error("changed while it was read; run again")

    def _error(self, problem: str) -> BorealisError:
        return BorealisError(f"{self.remote.label}: {problem}")


def locate(url: str, repo_id: str) -> tuple[int | None, str | None, str]:
    """Returns size, ETag and download URL of a file on the Hub. Raises TransientError or BorealisError."""
    from huggingface_hub import constants, get_hf_file_metadata

    metadata = ask(
        lambda: get_hf_file_metadata(url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT),
        repo_id,
    )
    return metadata.size, metadata.etag, urljoin(url, metadata.location)


def request_headers(with_token: bool) -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=None if with_token else False, library_name="borealis-gguf")


def origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def host(response: Any) -> str:
    """Returns the host of a response, without path and query, which may hold a signature."""
    return urlsplit(str(response.url)).hostname or "the server"


def normal_etag(etag: str | None) -> str | None:
    return etag.removeprefix("W/").strip('"') if etag else None
