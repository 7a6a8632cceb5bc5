"""Remake tests/data/config_defaults.json: what transformers' configuration classes say where a config.json is silent.

python -m tests.generate.config_defaults PYTHON      PYTHON has transformers
"""

import json
import subprocess
import sys

from ..helpers.paths import DATA

RECORDED = DATA / "config_defaults.json"
CLASSES = {
    "LLAMA": "LlamaConfig",
    "MISTRAL": "MistralConfig",
    "QWEN2": "Qwen2Config",
    "GEMMA3": "Gemma3TextConfig",
    "BLOOM": "BloomConfig",
    "SIGLIP": "SiglipVisionConfig",
}
"""Names in quality/cross_check/transformers_settings.py, and the classes whose defaults they hold."""

ASK = """
import json, sys, transformers
print(json.dumps({name: getattr(transformers, name)().to_dict() for name in sys.argv[1:]}))
"""


def main(python: str) -> None:
    done = subprocess.run([python, "-c", ASK, *CLASSES.values()], capture_output=True, encoding="utf-8", check=True)
    told = json.loads(done.stdout)
    numbers = {
        name: {key: v for key, v in said.items() if type(v) in (int, float) or key == "rope_parameters"}
        for name, said in told.items()
    }
    RECORDED.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
