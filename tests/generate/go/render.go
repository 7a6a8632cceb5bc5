// Renders conversations with Go's text/template, handing it what Ollama hands to a TEMPLATE.
// Standard input: {"template": …, "conversations": [[{"role": …, "content": …}]]}; standard output: the texts.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var asked struct {
		Template      string
		Conversations [][]*message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		log.Fatal(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(asked.Template))
	texts := make([]string, len(asked.Conversations))
	for i, messages := range asked.Conversations {
		var text strings.Builder
		if err := parsed.Execute(&text, map[string]any{"Messages": messages, "System": "", "Response": ""}); err != nil {
			log.Fatal(err)
		}
		texts[i] = text.String()
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		log.Fatal(err)
	}
}
