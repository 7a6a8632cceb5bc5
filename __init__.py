"""borealis-gguf: from a checkpoint to GGUF files that run, in one pass."""

from typing import TYPE_CHECKING, Any

from .errors import BorealisError, Busy, Cancelled, EncoderWarning, EngineDied, InvalidInput

if TYPE_CHECKING:
    from .api import check, execute, plan_convert, plan_convert_lora, plan_mmproj, plan_quantize
    from .pipeline.execute import FileResult, Progress
    from .pipeline.plan import FilePlan
    from .quality.report import Finding, Report, Section
    from .runtime.answer import Answer
    from .runtime.conversation import Conversation
    from .runtime.events import Candidate, Chosen, Event, Finished, Options, Text, Tool, ToolCall, Usage
    from .runtime.model import Model, aload, load

__all__ = [
    "Answer",
    "BorealisError",
    "Busy",
    "Cancelled",
    "Candidate",
    "Chosen",
    "Conversation",
    "EncoderWarning",
    "EngineDied",
    "Event",
    "FilePlan",
    "FileResult",
    "Finding",
    "Finished",
    "InvalidInput",
    "Model",
    "Options",
    "Progress",
    "Report",
    "Section",
    "Text",
    "Tool",
    "ToolCall",
    "Usage",
    "aload",
    "check",
    "execute",
    "load",
    "plan_convert",
    "plan_convert_lora",
    "plan_mmproj",
    "plan_quantize",
]

_HOMES = {
    "Answer": "runtime.answer",
    "Candidate": "runtime.events",
    "Chosen": "runtime.events",
    "Conversation": "runtime.conversation",
    "Event": "runtime.events",
    "FilePlan": "pipeline.plan",
    "FileResult": "pipeline.execute",
    "Finding": "quality.report",
    "Finished": "runtime.events",
    "Model": "runtime.model",
    "Options": "runtime.events",
    "Progress": "pipeline.execute",
    "Report": "quality.report",
    "Section": "quality.report",
    "Text": "runtime.events",
    "Tool": "runtime.events",
    "ToolCall": "runtime.events",
    "Usage": "runtime.events",
    "check": "api",
    "execute": "api",
    "aload": "runtime.model",
    "load": "runtime.model",
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
