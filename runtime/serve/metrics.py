"""Counters in the text format of Prometheus."""

from collections import Counter
from collections.abc import Iterable, Mapping

PREFIX = "borealis_gguf"
GAUGES = {
    "up": "1 while the model replies, 0 while it is loaded or does not.",
    "active": "Answers being made.",
    "waiting": "Requests waiting for a place.",
    "kv_tokens": "Tokens held in memory, of all conversations.",
}
COUNTERS = {
    "prompt_tokens_total": "Tokens of prompts, those known already included.",
    "completion_tokens_total": "Tokens made.",
    "prompt_seconds_total": "Seconds spent on prompts.",
    "completion_seconds_total": "Seconds spent on answers.",
    "cancelled_total": "Answers stopped before their end.",
    "restarts_total": "Times the model's process was started again.",
}

Sample = tuple[Mapping[str, str], float]


class Metrics:
    """Counts HTTP requests. Only routes that exist are counted, so that no request can add a series."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: Counter[str] = Counter()

    def count(self, route: str, status: int, seconds: float) -> None:
        self.requests[route, status] += 1
        self.seconds[route] += seconds  # pyright: ignore[reportArgumentType]

    def text(self, stats: Mapping[str, float]) -> str:
        """All metrics as text; `stats` are `Model.stats`, and may be empty."""
        requests = [({"route": r, "status": str(s)}, float(n)) for (r, s), n in sorted(self.requests.items())]
        seconds = [({"route": route}, float(total)) for route, total in sorted(self.seconds.items())]
        lines = [
            *_series("http_requests_total", "counter", "Requests answered; status 499: the client left.", requests),
            *_series("http_request_seconds_total", "counter", "Seconds from a request to its answer's end.", seconds),
        ]
        for kind, names in (("gauge", GAUGES), ("counter", COUNTERS)):
            for name, help in names.items():
                if name in stats:
                    lines += _series(name, kind, help, [({}, stats[name])])
        return "\n".join(lines) + "\n"


def _series(name: str, kind: str, help: str, samples: Iterable[Sample]) -> list[str]:
    full = f"{PREFIX}_{name}"
    return [f"# HELP {full} {help}", f"# TYPE {full} {kind}", *(f"{full}{_labels(of)} {v:.15g}" for of, v in samples)]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + inside + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
