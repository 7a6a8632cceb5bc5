"""How much memory the buffers of a run take, estimated from its plans."""

from collections.abc import Iterator, Sequence

from ..checkpoint.types import row_nbytes
from . import low_rank
from .plan import FilePlan
from .read_ahead import read_ahead_memory
from .sources import is_remote
from .tasks import CHUNK_WEIGHTS, Task, tasks


def memory_needed(plans: Sequence[FilePlan], jobs: int, chunk_weights: int = CHUNK_WEIGHTS) -> int:
    """Bytes of buffers that `jobs` workers hold at most, and of batches read ahead of them."""
    ahead = read_ahead_memory(jobs) if is_remote(plans) else 0
    return ahead + jobs * max(map(_task_memory, _largest(plans, chunk_weights)), default=0)


def _largest(plans: Sequence[FilePlan], chunk_weights: int) -> Iterator[Task]:
    """The first task of each tensor; of reordered rows every task: how far apart their sources lie varies."""
    return (task for task in tasks(plans, chunk_weights) if task.first == 0 or task.tensor.source.order)


def _task_memory(task: Task) -> int:
    n = task.tensor.n_per_row
    source = task.tensor.source
    updated = 0 if source.as_stored else low_rank.memory(source.updates, task.rows) + 2 * n * task.rows
    encoded = task.rows * max(row_nbytes(e.type, n) for e in task.encodings)
    return task.nbytes + task.span_nbytes + updated + task.rows * 4 * n + encoded
