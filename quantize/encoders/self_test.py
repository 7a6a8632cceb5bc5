"""The self-test of the encoders: before a run begins, and once more before the files it wrote get their names.

ggml takes seconds to build its tables of the lattice types: 11 for IQ1_S and IQ1_M, 4 for IQ2_S, 2 for IQ2_XS, 1 for
IQ2_XXS. Our encoders of these types start once they give ggml's recorded bytes, and a thread has the loaded ggml encode
the sample meanwhile, once for each version of its library: the digest is cached.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Event, Thread

from ...checkpoint.types import LATTICE_TYPES, GGMLQuantizationType
from ...errors import STOPPED, BorealisError, Cancelled
from . import ggml_digest_cache, native
from .libraries import library_path
from .sample_weights import sample_bytes


@dataclass(frozen=True, slots=True)
class PendingSelfTest:
    """A self-test of the kernels of `isa` that waits for ggml: `thread` has it encode the sample as `types`."""

    isa: str
    types: tuple[GGMLQuantizationType, ...]
    thread: Thread

    def finish(self, stop: Event | None = None) -> None:
        """Wait for ggml's digests and compare. Raises BorealisError if the kernels' differ, Cancelled once `stop` is
        set."""
        while self.thread.is_alive():
            if stop is not None and stop.is_set():
                raise Cancelled(STOPPED)
            self.thread.join(0.1)
        wrong = [type.name for type in self.types if _ggml_digest(type) != native.sample_digest(type, self.isa)]
        if wrong:
            native.forget_self_tests()
            raise BorealisError(
                f"{', '.join(wrong)}: the {self.isa} encoder differs from that of {library_path()}; run again, "
                f"and ggml's is used instead, or set {native.SWITCH}=ggml"
            )


def start_self_test(types: Iterable[GGMLQuantizationType]) -> PendingSelfTest | None:
    """Compare the encoders of `types` with ggml's; one warning names those that differ, and ggml encodes these types.

    If a pending self-test is returned, files may get their names once its `finish` has not raised.
    """
    isa = native.chosen_isa()
    trusted = native.trusted_types(isa, sorted(types)) if isa is not None else []
    unknown = tuple(type for type in trusted if _is_unknown(type))
    if isa is None or not unknown:
        return None
    # a daemon, so that a program can end before ggml has built its tables
    thread = Thread(target=lambda: [_ggml_digest(type) for type in unknown], name="ggml", daemon=True)
    thread.start()
    return PendingSelfTest(isa, unknown, thread)


def _is_unknown(type: GGMLQuantizationType) -> bool:
    """Whether the loaded ggml is the reference for `type` and its digest is not cached yet."""
    return native.ggml_decides() and type in LATTICE_TYPES and _cached_digest(type) is None


def _cached_digest(type: GGMLQuantizationType) -> str | None:
    return ggml_digest_cache.read_digest(type, sample_bytes())


def _ggml_digest(type: GGMLQuantizationType) -> str:
    """The digest of the sample as the loaded ggml encodes it: from the cache, or computed and put there."""
    known = _cached_digest(type)
    if known is None:
        known = native.sample_digest(type, None)
        ggml_digest_cache.write_digest(type, sample_bytes(), known)
    return known
