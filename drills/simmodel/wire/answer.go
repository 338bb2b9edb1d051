// Package wire writes answers in the formats of OpenAI and Anthropic, as the
// real providers do.
package wire

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Dialect renders one wire format. The stream of an answer is Start, each part
// (Open, its pieces, Close), End's out and the end mark.
type Dialect interface {
	RequestIDHeader() string
	ErrorBody(Error) any
	Models(names []string, owner string) any
	Plain(*Answer) any
	Start(*Answer) []byte
	Open(a *Answer, part int) []byte
	Piece(a *Answer, part int, text string) []byte
	Close(a *Answer, part int) []byte
	End(*Answer) (out, mark []byte)
	ErrorEvent(*Answer, Error) []byte
}

// Answer is what a request shall be told. It is not safe for concurrent use.
type Answer struct {
	Model    string // as asked
	Provider string
	Serial   uint64
	Created  int64 // Unix seconds
	Prompt   int   // tokens
	Output   int   // tokens of all parts
	Usage    bool  // OpenAI's streams: stream_options.include_usage
	Parts    []Part
	Stop     Stop
	Media    []byte // sound, or a picture
	Partial  int    // times that a stream shows the picture before it is done

	events int // written so far: the sequence_number of a response
}

// Part is one block of an answer.
type Part struct {
	Kind   Kind
	Name   string // of the function called
	Text   string
	Pieces []Piece
}

// Kind of a Part.
type Kind int

// Kinds of parts.
const (
	Text Kind = iota
	Refusal
	Thinking
	Call
)

// Piece is what one event of a stream carries.
type Piece struct {
	Text   string
	Tokens int // of the answer, written once this piece is out
}

// Stop is why an answer ended.
type Stop int

// Reasons to stop.
const (
	Ended Stop = iota
	CutShort
	Called
	Filtered // after some text
	Refused  // nothing but the refusal was said
)

// Error is what a Dialect turns into its own error body.
type Error struct {
	Status  int
	Kind    string // Anthropic's word for it; OpenAI's type follows from the status
	Code    string
	Message string
	Param   any    // OpenAI only
	Inner   Object // OpenAI only: Azure's innererror
}

// Object is a JSON object.
type Object = map[string]any

// Declined says that the answer is a refusal.
func (a *Answer) Declined() bool { return a.Stop == Refused || a.Stop == Filtered }

// TextOf joins the parts of one kind.
func (a *Answer) TextOf(kind Kind) string {
	var b strings.Builder
	for _, p := range a.Parts {
		if p.Kind == kind {
			b.WriteString(p.Text)
		}
	}
	return b.String()
}

// reasoning is how many of the answer's tokens were thoughts.
func (a *Answer) reasoning() int {
	if len(a.Parts) > 0 && a.Parts[0].Kind == Thinking {
		return a.Parts[0].Pieces[len(a.Parts[0].Pieces)-1].Tokens
	}
	return 0
}

// callID names part n of an answer.
func (a *Answer) callID(prefix string, n int) string {
	return fmt.Sprintf("%s_%s_%d_%d", prefix, a.Provider, a.Serial, n)
}

// MustJSON encodes values made only of strings, numbers, maps and slices.
func MustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("simmodel: " + err.Error())
	}
	return b
}
