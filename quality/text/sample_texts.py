"""Sample texts on which tokenizers tend to disagree, written for this purpose."""

LITERAL_SPACES = "▁ ▁▁ lav ▁strek▁"
"""SentencePiece's own character for a space, as text."""

LINES = (
    "",
    " ",
    "Hei!",
    # Bokmål
    "Jeg så en ørn over fjorden i går kveld, og den fløy rett mot månen.",
    "Blåbærsyltetøyet står på øverste hylle, bak eplemosen og den gamle kaffekvernen.",
    "«Hvor skal du?» spurte hun. – Ut, svarte han … og lukket døra.",
    "Ca. 40 % av de 1 234 567,89 kronene gikk til vedlikehold (jf. § 3-2 første ledd bokstav c).",
    "Menneskerettighetsorganisasjonene samarbeidet med fylkeskommunene.",
    # Nynorsk
    "Eg såg ei ørn over fjorden i går kveld, og ho flaug beint mot månen.",
    "Kva heiter den høgste fossen på Vestlandet, og kor mange har gått heilt opp?",
    "Dei kjem ikkje før i morgon; då har me tid til å snakka saman, trur eg.",
    "Vêret vart verre utover dagen, så båten låg fôr anker ved øya.",
    # Sámi letters: northern, lule, southern, skolt
    "Mun lean boahtán Guovdageainnus, ja áhčči lea vuolgán mearragáddái čázi viežžat.",
    "Đ đ Ŋ ŋ Ŧ ŧ Č č Š š Ž ž Á á – buot bustávat galget leat das.",
    "Mån lav Divtasvuonas, ja åhpadim julevsámegielav ńiellja jage.",
    "Manne saemien gïelem soptsestem, jïh dam aaj tjaalem.",
    "Mon jorddam što tõt lij šiõǥǥ: â ǥ ǩ ǯ ʹ õ ä å",
    # English and neighbours
    "The quick brown fox doesn't jump over 13 lazy dogs' kennels, does it?",
    "I'll've been there; she'd said: \"don't\" -- twice!!!",
    "Þetta er íslenska; det här är svenska; dette er dansk; tämä on suomea; see on eesti keel.",
    "Быстрая лиса, γρήγορη αλεπού, שועל מהיר, ثعلب سريع, 敏捷的狐狸, すばやい狐, 빠른 여우, तेज़ लोमड़ी",
    # code and markup
    "def f(x: int, *, y=None) -> dict[str, int]:\n    return {**(y or {}), 'x': x ** 2 % 7}  # æøå",
    "\tif (a[i] != b->c && !(flags & 0x1F)) { goto done; }\n\t/* ferdig */",
    "SELECT navn, COUNT(*) FROM \"personer\" WHERE poststed LIKE 'Å%' GROUP BY 1;",
    '{"nøkkel": [1, 2.5e-3, null, true], "sti": "C:\\\\Users\\\\Åse\\\\fil.txt"}',
    "<p class='ingress'>Les <a href=\"https://example.no/søk?q=bl%C3%A5b%C3%A6r&side=2#topp\">mer</a></p>",
    "# Overskrift\n\n* punkt **én**\n* punkt _to_\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint('hei')\n```",
    # emoji and other characters of many bytes
    "😀 👍🏽 👩‍👩‍👧‍👦 🇳🇴 ❤️ ☃ 🫐🧀",
    "Smil😀midt😀i😀ordet, og en 🏔️på slutten🏔️",
    "𝔄𝔟𝔠 ½ ¾ ² ³ № ™ € £ ¥ ° ± × ÷ ≈ ≠ → ⇒ ∀ ∑",
    "å a\u030a Å A\u030a é e\u0301 ø o\u0338 ﬁ ﬀ Ⅳ ㎏",
    "ikke\u00a0brytbar\u202fsmal\u2009tynn\u200bnull\u200dføyer\ufeffmerke\u00admyk",
    "\u0001\u0007\u001b[31mrødt\u001b[0m\u007f\u0085\u2028\u2029",
    "\U0001f9ff\U000e0041\U0010fffd \ue000 \ufffd",
    # digits
    "0 1 12 123 1234 12345 123456 1234567 12345678 123456789 00012300",
    "3,14159265358979 1.000.000,00 1e-10 0x7fff 0b1010 12:34:56 2024-02-29 17. mai 1814",
    "+47 22 33 44 55, 01017012345, NO93 8601 1117 947, ²³⁴ ٣٤٥ 五六七",
    # runs of white space
    "to  tre   fire    fem     seks      sju       åtte        ni",
    " " * 7 + "sju foran, og tretti bak" + " " * 30,
    " " * 64,
    "x" + " " * 33 + "y" + " " * 128 + "z",
    "en\nto\n\ntre\n\n\nfire\n\n\n\nfem" + "\n" * 12,
    "\n",
    "\n" * 31 + "slutt",
    "\n \n  \n   \n\t\n",
    "\t\t\ttre tabulatorer\t og \t\t flere \t",
    "linje\r\nlinje\r\n\r\nlinje\rslutt\x0b\x0c",
    # repetition, and words no vocabulary holds
    "ha" * 50,
    "!" * 40 + "?" * 17 + "." * 25 + "-" * 33 + "=" * 50 + "_" * 9,
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenüberprüfungsstelle",
    "xqzjwkvbp Ørsåkdfgh AbCdEfGhIj sNaKe_cAsE camelCaseMedÆØÅ SCREAMING_SNAKE",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaæ",
    "<0x0A> <0xFF> [PAD1] <s> </s> <|im_start|> [INST]",
    LITERAL_SPACES,
)

QUICK_LINES = tuple(line for line in LINES if line is not LITERAL_SPACES)
"""The quick check's. No GGUF of a Gemma 3 can tokenize the line that is left out as the checkpoint does; to show that
this is a known difference takes another worker, which is started only when ids differ."""
