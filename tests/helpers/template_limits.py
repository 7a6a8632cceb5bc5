"""Renders the chat templates in the files it is given, and tells as JSON what happened, how long it took, and the peak.

Run as a process of its own, so that its children are the processes that render: python template_limits.py FILE…
"""

import json
import os
import resource
import sys
from pathlib import Path

from borealis_gguf.errors import InvalidInput
from borealis_gguf.runtime.prompting.chat_template import ChatTemplate
from borealis_gguf.runtime.prompting.template_renderer import TemplateRenderer

USER = [{"role": "user", "content": "Hei"}]
KIB = 1 if sys.platform == "darwin" else 1024


def render(path: str) -> dict[str, object]:
    """`seconds` are of the processor, in both processes: how busy the machine is does not matter."""
    message, before = "", processor_seconds()
    with TemplateRenderer(ChatTemplate(Path(path).read_text(encoding="utf-8"))) as renderer:
        try:
            renderer.render_segments(USER)
        except InvalidInput as error:
            message = str(error)
    return {"message": message, "seconds": processor_seconds() - before}


def processor_seconds() -> float:
    return sum(os.times()[:4])


if __name__ == "__main__":
    results = [render(path) for path in sys.argv[1:]]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * KIB
    print(json.dumps({"results": results, "peak": peak}))
