"""borealis-gguf: from a checkpoint to GGUF files that run, in one pass."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        check as check,
        execute as execute,
        plan_convert as plan_convert,
        plan_convert_lora as plan_convert_lora,
        plan_mmproj as plan_mmproj,
        plan_quantize as plan_quantize,
    )
    from .errors import (
        BorealisError as BorealisError,
        Busy as Busy,
        Cancelled as Cancelled,
        EncoderWarning as EncoderWarning,
        EngineDied as EngineDied,
        InvalidInput as InvalidInput,
    )
    from .pipeline.execute import FileResult as FileResult, Progress as Progress
    from .pipeline.plan import FilePlan as FilePlan
    from .quality.report import Finding as Finding, Report as Report, Section as Section
    from .runtime.answer import Answer as Answer
    from .runtime.conversation import Conversation as Conversation
    from .runtime.events import (
        Candidate as Candidate,
        Chosen as Chosen,
        Event as Event,
        Finished as Finished,
        Options as Options,
        Text as Text,
        Tool as Tool,
        ToolCall as ToolCall,
        Usage as Usage,
    )
    from .runtime.model import Model as Model, aload as aload, load as load

__version__: str

PUBLIC = {
    "api": "check execute plan_convert plan_convert_lora plan_mmproj plan_quantize",
    "errors": "BorealisError Busy Cancelled EncoderWarning EngineDied InvalidInput",
    "pipeline.execute": "FileResult Progress",
    "pipeline.plan": "FilePlan",
    "quality.report": "Finding Report Section",
    "runtime.answer": "Answer",
    "runtime.conversation": "Conversation",
    "runtime.events": "Candidate Chosen Event Finished Options Text Tool ToolCall Usage",
    "runtime.model": "Model aload load",
}
"""The public names of each module, for run time; type checkers read the imports above, and a test compares the two."""
MODULES = {name: module for module, names in PUBLIC.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import borealis_gguf` stays instant."""
    if name == "__version__":
        return import_module("importlib.metadata").version("borealis-gguf")
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(MODULES)
