"""Gemma 3's chat format: as a Go template for Ollama, and as a function that says what both must render."""

from collections.abc import Mapping, Sequence

STOP = "<end_of_turn>"
_SPACE = "32 9 10 11 12 13 28 29 30 31"

# Go templates have no trim: white space falls off a byte at a time (`len (slice $text 1)` is the last index), and the
# loops end at once where there is none. No <bos>: Ollama adds it. A system message waits in $system for the next turn.
TEMPLATE = f"""\
{{{{- $system := "" }}}}
{{{{- range .Messages }}}}
{{{{- $text := .Content }}}}
{{{{- if eq .Role "system" }}}}
{{{{- $system = printf "%s%s\\n\\n" $system $text }}}}
{{{{- else }}}}
{{{{- range len $text }}}}
{{{{- if eq (index $text 0) {_SPACE} }}}}{{{{ $text = slice $text 1 }}}}{{{{ else }}}}{{{{ break }}}}{{{{ end }}}}
{{{{- end }}}}
{{{{- range len $text }}}}
{{{{- $last := len (slice $text 1) }}}}
{{{{- if eq (index $text $last) {_SPACE} }}}}
{{{{- $text = slice $text 0 $last }}}}{{{{ else }}}}{{{{ break }}}}{{{{ end }}}}
{{{{- end }}}}
{{{{- if eq .Role "assistant" }}}}<start_of_turn>model
{{{{ else }}}}<start_of_turn>{{{{ .Role }}}}
{{{{ end }}}}{{{{ $system }}}}{{{{ $text }}}}<end_of_turn>
{{{{ $system = "" }}}}
{{{{- end }}}}
{{{{- end }}}}<start_of_turn>model
"""
"""Needs Go 1.24 (`range` over a number), which every Ollama that runs Gemma 3 is built with."""

Turn = Mapping[str, str]
"""`role` and `content`."""

SAMPLES: tuple[tuple[Turn, ...], ...] = (
    ({"role": "user", "content": "Hei"},),
    ({"role": "system", "content": "Svar kort."}, {"role": "user", "content": "Hei"}),
    (
        {"role": "system", "content": " To\nlinjer "},
        {"role": "user", "content": "  Blåbær?\n\n"},
        {"role": "assistant", "content": "\tJa.\n"},
        {"role": "user", "content": ""},
    ),
)
"""Conversations that tell this format from others."""


def render_gemma(messages: Sequence[Turn]) -> str:
    """The prompt without BOS: a leading system message precedes the first turn's text, with a blank line between."""
    system = ""
    turns = []
    for message in messages:
        if message["role"] == "system":
            system += message["content"] + "\n\n"
            continue
        role = "model" if message["role"] == "assistant" else message["role"]
        turns.append(f"<start_of_turn>{role}\n{system}{message['content'].strip()}{STOP}\n")
        system = ""
    return "".join(turns) + "<start_of_turn>model\n"
