"""What transformers sees: run by `vision_goldens` in an environment with torch, transformers and Pillow.

python vision_oracle.py pictures FOLDER             draws the test's pictures
python vision_oracle.py resized             prints digests of resized patterns as JSON
python vision_oracle.py look CHECKPOINT IMAGE...    prints features, ids and logits as JSON
"""

# pyright: reportMissingImports=false

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration, Gemma3Processor
from transformers.image_utils import load_image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

SIZES = ((97, 5, 56, 5), (5, 41, 5, 56), (3000, 2, 896, 2), (2, 895, 2, 896), (1, 3, 1, 896), (4, 4, 1, 4))
PROMPT = "Hva ser du på bildet?"


def drawn(width: int, height: int) -> np.ndarray:
    """Waves of colour with a sharp-edged disc: something to blur and something to keep."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(9 * x + 2 * y), np.cos(3 * x - 11 * y), np.sin(20 * x * y)]
    picture = np.stack([127.5 + 127 * wave for wave in waves], axis=-1)
    picture[(x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.02] = (250, 240, 5)
    return picture.round().astype(np.uint8)


def pictures(folder: Path) -> None:
    Image.fromarray(drawn(56, 56)).save(folder / "exact.png")
    alpha = np.full((41, 97, 1), 99, np.uint8)
    Image.fromarray(np.concatenate([drawn(97, 41), alpha], axis=-1), "RGBA").save(folder / "wide-rgba.png")
    Image.fromarray(drawn(50, 80)).convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(drawn(100, 60))
    photo.save(folder / "turned.jpg", quality=97, subsampling=0, exif=exif)
    photo.save(folder / "progressive.jpg", quality=90, progressive=True)


def resized(width: int, height: int, across: int, down: int) -> str:
    """SHA-256 of a pattern that Pillow resizes along one axis. (Its versions differ in which of two comes first.)"""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * x * 7 + y * 13, x * 31 + y * y, x * y], axis=-1) % 251
    image = Image.fromarray(picture.astype(np.uint8)).resize((across, down), Image.Resampling.BILINEAR)
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


def look(checkpoint: Path, images: list[Path]) -> dict[str, Any]:
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
        image_seq_length=json.loads((checkpoint / "config.json").read_text("utf-8"))["mm_tokens_per_image"],
    )
    processor.chat_template = (checkpoint / "chat_template.jinja").read_text("utf-8")
    model = Gemma3ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return {path.name: seen(processor, model, path) for path in images}


@torch.inference_mode()
def seen(processor: Any, model: Any, path: Path) -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    text = text.removeprefix(processor.tokenizer.bos_token)
    inputs = processor(images=[[load_image(str(path))]], text=[text], return_tensors="pt")
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    logits = model(**inputs).logits[0, -1]
    return {
        "ids": inputs["input_ids"][0].tolist(),
        "features": [[float(f"{value:.7g}") for value in row] for row in features[0].tolist()],
        "logits": [float(f"{value:.7g}") for value in logits[:256].tolist()],
    }


if __name__ == "__main__":
    if sys.argv[1] == "pictures":
        pictures(Path(sys.argv[2]))
    elif sys.argv[1] == "resized":
        print(json.dumps([[*sizes, resized(*sizes)] for sizes in SIZES]))
    else:
        print(json.dumps(look(Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]])))
