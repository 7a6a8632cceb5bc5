"""Remake tests/data/tokenizers/bpe.json: a byte-level BPE vocabulary of 1200 merges, trained on the lines below.

    python -m tests.generate.bpe          from the repository's root

Texts are not split into words before training, so that tokens hold digits, spaces, newlines and several letters of
upper case at will: any two ways of splitting words then give different ids. Tests put the pre-tokenizer in that they
are about.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ..helpers.norwegian_lines import LINES
from ..helpers.paths import DATA

BPE = DATA / "tokenizers" / "bpe.json"
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<mask>", "<|im_start|>", "<|im_end|>")
MORE = """
Hei! Kan du hjelpe meg med å skrive en søknad til kommunen?
Selvfølgelig. Hva slags søknad gjelder det, og når er fristen?
Språkrådet gir råd om norsk språk, både på bokmål og nynorsk.
Nasjonalbiblioteket samler, bevarer og formidler alt som er utgitt i Norge.
Modellen er trent på bøker, aviser og nettsider fra hele landet.
Ho gjekk opp på loftet og henta ned dei gamle bøkene til bestemora si.
Det var ein gong ein konge som hadde tre søner og eit halvt rike.
Vi møttes på ØVRE TORG kl. 12.00, ved ÅPENT HUS hos BÆRUM KOMMUNE.
I 1905, 1914, 1940 og 1945 skjedde mye; i 2024 og 2025 også.
Toget fra Bergen til Oslo tar 6 timer og 45 minutter, og koster 549 kr.
Kjære deg,

takk for brevet. Vi sees i påsken!

Hilsen Øyvind
""".strip().splitlines()


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(SPECIALS) + 1200,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=9,
        show_progress=False,
    )
    text = (DATA / "norwegian.txt").read_text(encoding="utf-8")
    tokenizer.train_from_iterator([*LINES, text, *MORE, "\n".join(MORE)], trainer)
    BPE.parent.mkdir(exist_ok=True)
    BPE.write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8", newline="")
    print(tokenizer.get_vocab_size(), "tokens")


if __name__ == "__main__":
    main()
