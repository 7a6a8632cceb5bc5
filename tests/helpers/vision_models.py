"""Miniatures that see, small enough to run and sane enough in their weights that rounding stays rounding."""

import json
from pathlib import Path

from .checkpoints import (
    LAYOUTS,
    N_NANO,
    NANO,
    PLAIN,
    VISION,
    Miniature,
    config,
    nano_tokenizer,
    preparation,
    wrapped,
    write_json,
)

TEXT = config(num_hidden_layers=7, vocab_size=N_NANO + 64, sliding_window=512)
MARKS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def tokenizer_that_sees(folder: Path) -> None:
    """nano's tokenizer and chat template, with `<image_soft_token>` after its last piece."""
    nano_tokenizer("tokenizer.model", "chat_template.jinja", "special_tokens_map.json")(folder)
    token = {"id": N_NANO, "content": "<image_soft_token>", "special": True, "normalized": False}
    whole = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    whole["added_tokens"].append(token | {"single_word": False, "lstrip": False, "rstrip": False})
    write_json(folder / "tokenizer.json", whole)
    settings = json.loads((NANO / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"][str(N_NANO)] = {k: v for k, v in token.items() if k != "id"}
    write_json(folder / "tokenizer_config.json", settings | MARKS)


def _seeing(name: str, image_size: int, layout: tuple[str, str]) -> Miniature:
    vision = VISION | {"image_size": image_size, "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4}
    return Miniature(
        name,
        wrapped(TEXT, vision, image_token_index=N_NANO, boi_token_index=6, eoi_token_index=7),
        tokenizer=tokenizer_that_sees,
        wrap=("language_model.model.", "language_model.lm_head"),
        vision=layout,
        scale=0.3,
        files={"preprocessor_config.json": preparation(image_size, 4)},
    )


SEEING = (_seeing("seeing-56", 56, PLAIN), _seeing("seeing-112", 112, LAYOUTS[1]))
"""Of 4 × 4 patches pooled by two, which a key says, and of 8 × 8 pooled by four, as all published sizes are."""
