package relay

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
)

// TestStreamsAreNeverShown: what holds pieces of an answer prints none of it.
func TestStreamsAreNeverShown(t *testing.T) {
	const canary = "quokka7be1"
	event := []byte(canary)
	broken := Broken{Outcome: breaker.Refused, Event: event}
	batch := Batch{Forward: event, Last: event, Broken: &broken}
	result := Result{body: dialect.Conceal(event), Stream: &Stream{first: &batch, buffer: &event}}
	var text bytes.Buffer
	for _, v := range []any{batch, &batch, []Batch{batch}, broken, &broken, map[string]Broken{"k": broken}, &result, []*Result{&result}, struct{ B Batch }{batch}} {
		text.Reset()
		for _, verb := range "vsqxXdobcU" {
			for _, flag := range []string{"", "+", "#", " "} {
				fmt.Fprintf(&text, "%"+flag+string(verb)+"\n", v)
			}
		}
		fmt.Fprintln(&text, fmt.Errorf("x: %v", v))
		for _, h := range []slog.Handler{slog.NewTextHandler(&text, nil), slog.NewJSONHandler(&text, nil)} {
			slog.New(h).Info("m", "v", v)
		}
		out, _ := json.Marshal(v)
		text.Write(out)
		for _, form := range []string{canary, hex.EncodeToString(event), strings.ToUpper(hex.EncodeToString(event)), "113 117 111 107 107 97", "cXVva2thN2Jl"} {
			if strings.Contains(text.String(), form) {
				t.Errorf("%T shows %q", v, form)
			}
		}
	}
}
