"""Save a checkpoint again with the transformers of this Python: python resave.py CHECKPOINT FOLDER."""

import json
import sys
from pathlib import Path

import transformers  # type: ignore[import-not-found]


def main(checkpoint: Path, folder: Path) -> None:
    (name,) = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["architectures"]
    getattr(transformers, name).from_pretrained(checkpoint, torch_dtype="auto").save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    if (checkpoint / "processor_config.json").exists():
        try:
            transformers.AutoProcessor.from_pretrained(checkpoint).save_pretrained(folder)
        except ValueError as error:  # 5.4 makes no image processor without torchvision
            print(f"{transformers.__version__}: {str(error)[:60]}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
