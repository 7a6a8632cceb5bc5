"""What the next batch holds: one token of each answer being decoded, filled up with tokens of prompts."""

from collections.abc import Sequence

from ..llama.engine import BatchToken
from ..llama.limits import BATCH
from .job import Job

SHARED_BATCH = 128
"""Most prompt tokens of a batch while answers are being decoded: each of them waits for the whole batch."""


def next_batch(jobs: Sequence[Job], window_cells: int) -> tuple[list[BatchToken], list[Job]]:
    """The tokens to compute next for `jobs`, and for each of them its job. `window_cells`: see `Engine`."""
    tokens: list[BatchToken] = []
    owners: list[Job] = []
    for job in jobs:
        if job.generated and job.slot is not None:
            tokens.append(BatchToken(job.slot.id, job.position, job.last_token, True))
            owners.append(job)
    decoding = len(tokens)
    room = min(BATCH - decoding, SHARED_BATCH) if decoding else BATCH
    for job in jobs:
        if not job.generated:
            chunk = _prompt_chunk(job, room - (len(tokens) - decoding), window_cells)
            tokens += chunk
            owners += [job] * len(chunk)
    return tokens, owners


def _prompt_chunk(job: Job, room: int, window_cells: int) -> list[BatchToken]:
    """The next tokens of a prompt, at most `room`, up to an image, the end, or the wrap of the windows' ring buffer.

    A batch across the wrap that is aborted and computed again would use other cells, and results would differ in their
    last digits.
    """
    slot, start = job.slot, job.position
    if slot is None:
        return []
    ends = [start + max(0, room), len(job.tokens), *(position for position in job.images if position > start)]
    if window_cells:
        ends.append((start // window_cells + 1) * window_cells)
    last = len(job.tokens) - 1
    return [BatchToken(slot.id, at, job.tokens[at], at == last) for at in range(start, min(ends))]
