package simmodel

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"ringmain/drills/simmodel/wire"
)

// refusal is what the model says where it declines.
var refusal = []string{"I", " cannot", " help", " with", " that."}

// thoughts come before the answer where thinking is asked for.
var thoughts = []string{"The", " ring", " is", " fed", " from", " two", " sides", "."}

// compose settles what c is answered and where its fault acts.
func (c *call) compose(in *input) {
	c.fault = c.suffix.fault
	if slices.Contains(Faults(), c.base) || slices.Contains(Refusals(), c.base) || slices.Contains(Quirks(), c.base) {
		c.fault = c.base
	}
	if c.suffix.window > 0 && c.Prompt <= c.suffix.window && c.fault == QuirkContext {
		c.fault = ""
	} else if c.suffix.window > 0 && c.Prompt > c.suffix.window {
		c.fault = QuirkContext
	}
	if c.suffix.chunk > 0 {
		c.chunk = c.suffix.chunk
	}
	if c.suffix.write > 0 {
		c.write = c.suffix.write
	}

	most := max(in.MaxTokens, in.MaxCompletionTokens, in.MaxOutputTokens)
	tokens, whole := Tokens(c.base, c.messages, min(in.MinTokens, 1<<20), most)
	if c.suffix.drift >= 0 {
		for i := c.suffix.drift; i < len(tokens); i++ {
			tokens[i] = fmt.Sprintf(" drift-%s-%d", c.Provider, c.Serial)
		}
	}
	if !whole {
		c.Stop = wire.CutShort
	}
	if in.Thinking != nil && in.Thinking.Type != "disabled" || in.Reasoning != nil && in.Reasoning.Summary != "" {
		c.add(wire.Thinking, "", thoughts)
	}
	calls := in.calls()
	switch {
	case c.fault == FaultRefusal:
		c.Stop = wire.Refused
		c.add(wire.Refusal, "", refusal)
	case c.fault == RefusalFinish:
		c.Stop = wire.Filtered
		c.add(wire.Text, "", tokens[:max(1, len(tokens)/2)])
	case len(calls) > 0:
		c.Stop = wire.Called
		for _, t := range calls {
			c.add(wire.Call, t.name, fragments(string(wire.MustJSON(t.parameters.example()))))
		}
	case in.shape() != nil:
		c.add(wire.Text, "", fragments(string(wire.MustJSON(in.shape().example()))))
	default:
		c.add(wire.Text, "", tokens)
	}

	n := 0
	for _, p := range c.Parts {
		n += len(p.Pieces)
	}
	switch {
	case !inside(c.fault):
		c.at = -1
	case c.fault == c.suffix.fault:
		c.at = min(c.suffix.at, n)
	default:
		c.at = n / 2
	}
}

// inside reports whether fault acts inside an answer.
func inside(fault string) bool {
	for _, f := range breaks {
		if f == fault {
			return true
		}
	}
	return false
}

// add appends a part, cut into the pieces that a stream shows.
func (c *call) add(kind wire.Kind, name string, tokens []string) {
	p := wire.Part{Kind: kind, Name: name, Text: strings.Join(tokens, "")}
	before := c.Output
	c.Output += len(tokens)
	if c.chunk <= 0 {
		for i, t := range tokens {
			p.Pieces = append(p.Pieces, wire.Piece{Text: t, Tokens: before + i + 1})
		}
		c.Parts = append(c.Parts, p)
		return
	}
	ends := make([]int, len(tokens)) // of each token, in characters
	total := 0
	for i, t := range tokens {
		total += utf8.RuneCountInString(t)
		ends[i] = total
	}
	for rest, done := p.Text, 0; rest != ""; {
		n, size := 0, 0
		for n < c.chunk && size < len(rest) {
			_, s := utf8.DecodeRuneInString(rest[size:])
			n, size = n+1, size+s
		}
		done += n
		whole, _ := slices.BinarySearch(ends, done+1)
		p.Pieces = append(p.Pieces, wire.Piece{Text: rest[:size], Tokens: before + whole})
		rest = rest[size:]
	}
	c.Parts = append(c.Parts, p)
}

// fragments cuts arguments into five characters each: all ASCII but for names
// taken from the request, which stay whole characters.
func fragments(text string) []string {
	var out []string
	for runes := []rune(text); len(runes) > 0; {
		n := min(5, len(runes))
		out, runes = append(out, string(runes[:n])), runes[n:]
	}
	return out
}

type function struct {
	name       string
	parameters schema
}

// calls are the functions that the answer calls: the first one declared, or the
// first two where the request says that calls may be parallel; none once a
// result is there.
func (in *input) calls() []function {
	choice := string(in.ToolChoice)
	if in.answered || choice == `"none"` || strings.Contains(choice, `"type":"none"`) {
		return nil
	}
	most := 1
	if in.ParallelToolCalls != nil && *in.ParallelToolCalls || strings.Contains(choice, `"disable_parallel_tool_use":false`) {
		most = 2
	}
	var out []function
	for _, t := range in.Tools {
		switch {
		case len(out) == most:
		case t.Function.Name != "":
			out = append(out, function{t.Function.Name, t.Function.Parameters})
		case t.Name != "" && (t.Type == "function" || t.Type == "custom" || t.Type == ""):
			f := function{t.Name, t.Parameters}
			if len(t.InputSchema.Properties) > 0 {
				f.parameters = t.InputSchema
			}
			out = append(out, f)
		}
	}
	return out
}

// schema is as much of JSON Schema as an example needs.
type schema struct {
	Type       any               `json:"type"`
	Enum       []any             `json:"enum"`
	Properties map[string]schema `json:"properties"`
	Items      *schema           `json:"items"`
}

// example is a value that fits s.
func (s schema) example() any {
	if len(s.Enum) > 0 {
		return s.Enum[0]
	}
	kind, _ := s.Type.(string)
	switch {
	case kind == "string":
		return "Zürich"
	case kind == "integer", kind == "number":
		return 7
	case kind == "boolean":
		return true
	case kind == "null":
		return nil
	case kind == "array" && s.Items != nil:
		return []any{s.Items.example()}
	case kind == "array":
		return []any{}
	}
	o := wire.Object{}
	for name, p := range s.Properties {
		o[name] = p.example()
	}
	return o
}
