"""A model in a child process: a crash of native code is an exception for the app, and the next request restarts it."""

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BorealisError, EngineDied
from ..events import EventSink, GenerationRequest, ModelInfo
from .child_process import child_command
from .model_worker_client import ModelWorkerClient
from .wire_format import FIGURES, pack, pack_request

if TYPE_CHECKING:
    from ..llama.loading import LoadProgress

WORKER = f"{__package__}.model_worker"
RESTART_SECONDS = 60.0
"""Longest wait of a request for a model that is loaded again after a crash; then it is refused as Busy."""


class IsolatedModel:
    """A backend of `Model`. Every method may be called from any thread; no lock is held while a model is loaded."""

    def __init__(
        self,
        path: Path,
        load: Mapping[str, Any],
        on_progress: "LoadProgress | None" = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`load` are the fields of LoadOptions; `command` replaces the worker's. Raises what `load` raises."""
        files: dict[str, Any] = {"loras": [(_absolute(name), scale) for name, scale in load.get("loras", ())]}
        if load.get("mmproj"):
            files["mmproj"] = _absolute(load["mmproj"])
        self._load_message = pack({"path": _absolute(path), "load": {**load, **files}})
        self._command = list(command or child_command(WORKER))
        self._lock = threading.Lock()
        self._closed = False
        self._restarts = 0
        self._figures: dict[str, float] = dict.fromkeys(FIGURES, 0.0)
        self._worker = ModelWorkerClient(self._command, self._load_message)
        try:
            self._info = self._worker.wait_until_loaded(on_progress)
        except BaseException:
            self._worker.close()
            raise

    @property
    def info(self) -> ModelInfo:
        """What the model offers; while it is loaded again, what it offered before."""
        return self._worker.info or self._info

    def _current_worker(self) -> ModelWorkerClient:
        """The worker process, which may still be loading; started again if it died."""
        with self._lock:
            if self._closed:
                raise BorealisError("the model is closed")
            if self._worker.ended is not None:
                self._worker.kill()
                self._worker = ModelWorkerClient(self._command, self._load_message)
                self._figures = dict.fromkeys(FIGURES, 0.0)
                self._restarts += 1
            return self._worker

    def _loaded_worker(self) -> ModelWorkerClient:
        """As `_current_worker`, with its model loaded. Raises Busy when that takes long."""
        worker = self._current_worker()
        self._info = worker.wait_until_loaded(seconds=RESTART_SECONDS)
        return worker

    def close(self) -> None:
        """End the process, also one that is loading; a second call does nothing."""
        with self._lock:
            self._closed = True
        self._worker.close()

    def start(self, request: GenerationRequest, sink: EventSink) -> Callable[[], None]:
        """Start an answer whose events go to `sink`; returns a function that cancels it. Raises InvalidInput, Busy."""
        worker = self._loaded_worker()
        number = worker.stream(pack_request(request), sink)
        return lambda: worker.cancel(number)

    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[np.ndarray, int]:
        """See `InProcessModel.embed`."""
        return self._loaded_worker().call("embed", list(texts))

    def tokenize(self, text: str) -> list[int]:
        """See `InProcessModel.tokenize`."""
        return self._loaded_worker().call("tokenize", text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """See `InProcessModel.detokenize`."""
        return self._loaded_worker().call("detokenize", list(ids))

    def save(self, path: str, conversation: Mapping[str, Any]) -> None:
        """See `InProcessModel.save`."""
        self._loaded_worker().call("save", path, conversation)

    def restore(self, path: str) -> dict[str, Any]:
        """See `InProcessModel.restore`."""
        return self._loaded_worker().call("restore", path)

    def stats(self) -> dict[str, float]:
        """See `InProcessModel.stats`; `restarts_total` counts the processes that died. Waits a second at most.

        While the process is loading or does not reply, `up` is 0 and the other figures are the last ones known.
        """
        worker = self._current_worker()
        figures: dict[str, float] | None = None
        if worker.info is not None:
            with contextlib.suppress(EngineDied):
                figures = worker.stats()
        self._figures = figures or self._figures
        return {**self._figures, "up": float(figures is not None), "restarts_total": self._restarts}


def _absolute(path: str | Path) -> str:
    """The child may have another working directory."""
    return str(Path(path).absolute())
