"""Remakes tests/data/gemma_go.json with a real Go (1.24 or later): python -m tests.generate.go_golden [GO]"""

import json
import random
import subprocess
import sys
from pathlib import Path

from borealis_gguf.modelfiles.gemma import SAMPLES, TEMPLATE

from ..helpers.paths import DATA

PIECES = (*" \n\t\r\v\f\x1c\x1fabæø", "😀", '"', "<end_of_turn>", "{{ .Role }}", "\u00e5")


def conversations() -> list[list[dict[str, str]]]:
    draw = random.Random(2)

    def text() -> str:
        return "".join(draw.choices(PIECES, k=draw.randrange(10)))

    made = [[], *map(list, SAMPLES), [{"role": "user", "content": " " * 5000 + "x" + "\n" * 5000}]]
    for _ in range(120):
        turns = [{"role": ("user", "assistant")[at % 2], "content": text()} for at in range(draw.randrange(1, 6))]
        made.append([{"role": "system", "content": text()}, *turns] if draw.random() < 0.4 else turns)
    return made


def main() -> None:
    go = sys.argv[1] if len(sys.argv) > 1 else "go"
    asked = {"template": TEMPLATE, "conversations": conversations()}
    command = [go, "run", str(Path(__file__).parent / "go" / "render.go")]
    done = subprocess.run(command, input=json.dumps(asked).encode(), stdout=subprocess.PIPE, check=True)
    golden = {**asked, "rendered": json.loads(done.stdout)}
    text = json.dumps(golden, ensure_ascii=True, indent=0) + "\n"
    (DATA / "gemma_go.json").write_bytes(text.encode("ascii"))


if __name__ == "__main__":
    main()
