"""borealis-gguf: from a checkpoint to GGUF files that run, in one pass."""

from typing import TYPE_CHECKING, Any

from .errors import BorealisError, Cancelled, InvalidInput

if TYPE_CHECKING:
    from .api import check, execute, plan_convert, plan_convert_lora, plan_mmproj, plan_quantize
    from .pipeline.execute import FileResult, Progress
    from .pipeline.plan import FilePlan
    from .quality.report import Finding, Report, Section
    from .runtime.chat import load

__all__ = [
    "BorealisError",
    "Cancelled",
    "FilePlan",
    "FileResult",
    "Finding",
    "InvalidInput",
    "Progress",
    "Report",
    "Section",
    "check",
    "execute",
    "load",
    "plan_convert",
    "plan_convert_lora",
    "plan_mmproj",
    "plan_quantize",
]

_HOMES = {
    "FilePlan": "pipeline.plan",
    "FileResult": "pipeline.execute",
    "Finding": "quality.report",
    "Progress": "pipeline.execute",
    "Report": "quality.report",
    "Section": "quality.report",
    "check": "api",
    "execute": "api",
    "load": "runtime.chat",
    "plan_convert": "api",
    "plan_convert_lora": "api",
    "plan_mmproj": "api",
    "plan_quantize": "api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import borealis_gguf` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
