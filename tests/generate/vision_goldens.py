"""Remake tests/data/images and tests/data/seeing.json: what transformers sees in each picture, and answers.

    python -m tests.generate.vision_goldens PYTHON      from the repository's root

PYTHON is an interpreter with torch, transformers and Pillow.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..helpers.paths import DATA
from ..helpers.vision_models import SEEING

IMAGES, GOLDEN = DATA / "images", DATA / "seeing.json"
ORACLE = Path(__file__).with_name("vision_oracle.py")


def main(python: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    subprocess.run([python, ORACLE, "pictures", IMAGES], check=True)
    resized = subprocess.run([python, ORACLE, "resized"], check=True, stdout=subprocess.PIPE).stdout
    golden: dict[str, Any] = {"resized": json.loads(resized)}
    for miniature in SEEING:
        with tempfile.TemporaryDirectory() as folder:
            command = [python, ORACLE, "look", miniature.write(Path(folder)), *sorted(IMAGES.iterdir())]
            golden[miniature.name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    text = json.dumps(golden, separators=(",", ":")).replace("},", "},\n").replace("],", "],\n")
    GOLDEN.write_text(text + "\n", encoding="utf-8", newline="")


if __name__ == "__main__":
    main(*sys.argv[1:])
