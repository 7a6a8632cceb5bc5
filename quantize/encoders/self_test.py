"""Trying the encoders a run needs: before it begins, and once more before what they made is believed.

ggml takes seconds to build its tables of the lattice types: 11 for IQ1_S and IQ1_M, 4 for IQ2_S, 2 for IQ2_XS, 1 for
IQ2_XXS. Their encoders begin when they give ggml's recorded bytes, and the loaded ggml is asked while they work. It is
asked once for each version of its library, and its answer remembered.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Event, Thread

from ...checkpoint.types import GGMLQuantizationType
from ...errors import BorealisError, Cancelled
from . import ggml, ggml_digest_cache, native
from .libraries import library_path


@dataclass(frozen=True, slots=True)
class Trial:
    """The kernels of `isa` are to be compared with ggml for `types`, which `thread` asks it about."""

    isa: str
    types: tuple[GGMLQuantizationType, ...]
    thread: Thread

    def confirm(self, stop: Event | None = None) -> None:
        """Wait for ggml's answers. Raises BorealisError when one is another than the kernels', and Cancelled once
        `stop` is set."""
        while self.thread.is_alive():
            if stop is not None and stop.is_set():
                raise Cancelled("stopped; nothing was written under a final name")
            self.thread.join(0.1)
        wrong = [type.name for type in self.types if _ask(type) != native.sample_digest(type, self.isa)]
        if wrong:
            native.forget_trust()
            raise BorealisError(
                f"{', '.join(wrong)}: the {self.isa} encoder differs from that of {library_path()}; run again, "
                f"and ggml's is used instead, or set {native.SWITCH}=ggml"
            )


def prepare(types: Iterable[GGMLQuantizationType]) -> Trial | None:
    """Try the encoders of `types`; one warning names all that differ from ggml's, which encodes those.

    What the others make is to be believed when the trial, if one is returned, has been confirmed.
    """
    isa = native.chosen_isa()
    trusted = native.trusted_of(isa, sorted(types)) if isa is not None else []
    unasked = tuple(type for type in trusted if _is_open(type))
    if isa is None or not unasked:
        return None
    # a daemon: whoever ends the program need not wait for ggml's tables
    thread = Thread(target=lambda: [_ask(type) for type in unasked], name="ggml", daemon=True)
    thread.start()
    return Trial(isa, unasked, thread)


def _is_open(type: GGMLQuantizationType) -> bool:
    """Whether the loaded ggml decides on `type`, and was not asked yet."""
    return native.ggml_decides() and type in ggml.GRID_TYPES and _answer(type) is None


def _answer(type: GGMLQuantizationType) -> str | None:
    return ggml_digest_cache.recall(type, native.sample_bytes())


def _ask(type: GGMLQuantizationType) -> str:
    """The digest of the sample as the loaded ggml encodes it: remembered, or asked for and kept."""
    known = _answer(type)
    if known is None:
        known = native.sample_digest(type, None)
        ggml_digest_cache.keep(type, native.sample_bytes(), known)
    return known
