package simmodel

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
)

// Message is one turn of a prompt, its text parts joined. A top-level system
// prompt (Anthropic) and instructions (responses) count as a first message with
// role "system"; a bare prompt or input as one with role "user".
type Message struct {
	Role string
	Text string
}

// Shortest and longest answer where the request sets no limits, in tokens.
const (
	minAnswer = 12
	maxAnswer = 48
)

// vocabulary holds some words outside ASCII and some that JSON must escape, so
// that a byte lost or mangled on the way shows.
var vocabulary = []string{
	"ring", "main", "feeds", "every", "consumer", "from", "two", "directions", "so", "a", "cut", "anywhere",
	"leaves", "everyone", "supplied", "region", "pool", "replica", "route", "leader", "follower", "quorum",
	"the", "of", "and", "when", "until", "nearest", "healthy", "déjà", "Zürich", "東京", "naïve", "✓", "\"quoted\"",
	"back\\slash", "<tag>", "tab\tstop", "new\nline", "surge", "drain", "admits", "sheds", "meters", "forwards",
	"holds", "returns", "under", "load", "without", "loss", "again",
}

// Answer is the whole answer to messages by model where the request sets no
// limit. Suffixes of the model name (":tps=20") do not change it.
func Answer(model string, messages []Message) string {
	tokens, _ := Tokens(model, messages, 0, 0)
	return strings.Join(tokens, "")
}

// Tokens is the answer token by token. It is at least minTokens long and is
// cut at maxTokens (0 = no limit); whole is false where it was cut.
func Tokens(model string, messages []Message, minTokens, maxTokens int) (tokens []string, whole bool) {
	seed := binary.LittleEndian.Uint64(promptHash(model, messages))
	n := max(minAnswer+int(seed%(maxAnswer-minAnswer+1)), minTokens)
	keep := n
	if maxTokens > 0 {
		keep = min(n, maxTokens)
	}
	tokens = make([]string, keep)
	for i := range tokens {
		word := vocabulary[mix(seed+uint64(i))%uint64(len(vocabulary))]
		if i > 0 {
			word = " " + word
		}
		if i == n-1 {
			word += "."
		}
		tokens[i] = word
	}
	return tokens, keep == n
}

// PromptTokens is what the provider bills for messages: one token a word, and
// three for each message's frame.
func PromptTokens(messages []Message) int {
	n := 3
	for _, m := range messages {
		n += 3 + len(strings.Fields(m.Text))
	}
	return n
}

// promptHash names a prompt to a model; lengths keep parts from running together.
func promptHash(model string, messages []Message) []byte {
	base, _, _ := splitModel(model) // a bad suffix is refused before any answer is made
	h := sha256.New()
	part := func(s string) {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	part(base)
	for _, m := range messages {
		part(m.Role)
		part(m.Text)
	}
	return h.Sum(nil)
}

// mix is splitmix64's finisher: a cheap, even spread of consecutive numbers.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb
	return x ^ (x >> 31)
}
