"""What the two oracles say, asked in a Python of their own (torch, transformers; nothing of this package).

    python peer.py convert CONVERT_HF_TO_GGUF.PY CHECKPOINT FOLDER PRE|- OUTTYPE...
    python peer.py logits CHECKPOINT PROMPTS.JSON OUT.NPY

The first writes FOLDER/OUTTYPE.gguf with llama.cpp's converter; PRE is what it is told the pre type of a vocabulary is
that it does not know. The second writes the logits of every position of every prompt (lists of ids), one after another.
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np


def convert(script: str, checkpoint: str, folder: str, pre: str, *outtypes: str) -> None:
    sys.path.insert(0, str(Path(script).parent / "gguf-py"))
    sys.path.insert(0, str(Path(script).parent))
    if pre != "-":
        from conversion.base import TextModel  # type: ignore[import-not-found]

        TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    for outtype in outtypes:
        sys.argv = [script, checkpoint, "--outtype", outtype, "--outfile", f"{folder}/{outtype}.gguf"]
        runpy.run_path(script, run_name="__main__")


def logits(checkpoint: str, prompts: str, out: str) -> None:
    import torch  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found = [model(torch.tensor([ids])).logits[0].numpy() for ids in json.loads(Path(prompts).read_text())]
    np.save(out, np.concatenate(found))


if __name__ == "__main__":
    {"convert": convert, "logits": logits}[sys.argv[1]](*sys.argv[2:])
