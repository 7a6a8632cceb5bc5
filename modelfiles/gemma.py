"""Gemma 3's chat format as a Go template for Ollama, and as a Python function that renders the same prompts."""

from collections.abc import Mapping, Sequence

STOP = "<end_of_turn>"
_SPACE = "32 9 10 11 12 13 28 29 30 31"

# Go templates have no trim, so loops remove white space byte by byte (`len (slice $text 1)` is the last index). Ollama
# adds <bos> itself. $system holds a system message until the next turn, which it precedes.
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
"""Needs Go 1.24 for `range` over a number; every Ollama that supports Gemma 3 is built with it."""

Turn = Mapping[str, str]
"""A chat message with `role` and `content`."""

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
"""Conversations that Gemma 3's format renders differently from other formats."""


def render_gemma(messages: Sequence[Turn]) -> str:
    """Returns the prompt without BOS; a system message precedes the next turn's text, separated by a blank line."""
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
