package splice

import (
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"ringmain/dataplane/dialect/stream"
)

// part is a run of text, or a call of a tool with its arguments.
type part struct {
	name string // of the tool; empty = text
	text string
}

// answer is what a model says, whatever carries it.
type answer struct {
	parts  []part
	finish string
}

// flat is the answer as one string: what a client has heard of it is a prefix.
func (a answer) flat() string {
	var b strings.Builder
	for _, p := range a.parts {
		b.WriteString("\x01" + p.name + "\x02" + p.text)
	}
	return b.String() + "\x03" + a.finish
}

func drawAnswer(t *rapid.T, path string) answer {
	text := func(least int) string { return rapid.StringN(least, 30, -1).Draw(t, "text") }
	call := func() part {
		return part{rapid.StringMatching(`[a-z]{1,6}`).Draw(t, "tool"), text(0)}
	}
	a := answer{finish: "stop"}
	switch path {
	case "/v1/completions":
		a.parts = []part{{text: text(1)}}
	case "/v1/chat/completions": // text first, then calls
		if rapid.Bool().Draw(t, "says something") {
			a.parts = append(a.parts, part{text: text(1)})
		}
		for range rapid.IntRange(0, 3).Draw(t, "calls") {
			a.parts = append(a.parts, call())
		}
	default:
		for range rapid.IntRange(0, 4).Draw(t, "parts") {
			if rapid.Bool().Draw(t, "text") {
				a.parts = append(a.parts, part{text: text(0)})
			} else {
				a.parts = append(a.parts, call())
			}
		}
	}
	return a
}

// other is a, or an answer that differs from it somewhere.
func other(t *rapid.T, a answer) answer {
	b := answer{slices.Clone(a.parts), a.finish}
	if len(b.parts) == 0 || rapid.IntRange(0, 2).Draw(t, "differs") > 0 {
		return b
	}
	p := &b.parts[rapid.IntRange(0, len(b.parts)-1).Draw(t, "where")]
	switch rapid.IntRange(0, 3).Draw(t, "how") {
	case 0:
		p.text += "!"
	case 1:
		p.text = "?" + p.text
	case 2:
		if _, n := utf8.DecodeLastRuneInString(p.text); n < len(p.text) {
			p.text = p.text[:len(p.text)-n]
		}
	case 3:
		if p.name != "" {
			p.name += "x"
		} else if len(b.parts) > 1 {
			b.parts = b.parts[:len(b.parts)-1]
		}
	}
	if p.name == "" && p.text == "" { // what nobody says cannot be told from what is not there
		p.text = "~"
	}
	return b
}

// pen writes an answer as events of an endpoint, under names of its own.
type pen struct {
	t   *rapid.T
	id  string
	n   int
	out strings.Builder
}

// quote encodes s in one of the ways that JSON allows.
func (p *pen) quote(s string) string {
	b, _ := json.Marshal(s)
	if !rapid.Bool().Draw(p.t, "escaped") {
		return string(b)
	}
	var out strings.Builder
	for _, r := range string(b) {
		switch {
		case r < 0x80:
			out.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}

// pieces cuts s somewhere, never within a character.
func (p *pen) pieces(s string) (all []string) {
	for len(s) > 0 {
		n := rapid.IntRange(0, min(len(s), 9)).Draw(p.t, "piece")
		for n < len(s) && !utf8.RuneStart(s[n]) {
			n++
		}
		all = append(all, s[:n])
		s = s[n:]
	}
	return all
}

func (p *pen) chunk(choice string) {
	p.noise()
	fmt.Fprintf(&p.out, "data: {\"id\":%q,\"object\":\"chunk\",\"created\":%d,\"model\":\"m\",\"choices\":[{\"index\":0,%s}]}\n\n", p.id, len(p.id), choice)
}

func (p *pen) event(kind, members string) {
	p.noise()
	fmt.Fprintf(&p.out, "event: %s\ndata: {\"type\":%q%s}\n\n", kind, kind, members)
}

func (p *pen) typed(kind, members string) {
	p.event(kind, fmt.Sprintf(`,"sequence_number":%d%s`, p.n, members))
	p.n++
}

func (p *pen) noise() {
	if rapid.IntRange(0, 9).Draw(p.t, "noise") == 0 {
		p.out.WriteString(": noise\n\n")
	}
}

func (p *pen) write(path string, a answer) string {
	switch path {
	case "/v1/completions":
		for _, s := range p.pieces(a.parts[0].text) {
			p.chunk(`"text":` + p.quote(s) + `,"finish_reason":null`)
		}
		p.chunk(`"text":"","finish_reason":` + p.quote(a.finish))
		p.out.WriteString("data: [DONE]\n\n")
	case "/v1/chat/completions":
		p.chat(a)
	case "/v1/messages":
		p.messages(a)
	default:
		p.responses(a)
	}
	return p.out.String()
}

func (p *pen) chat(a answer) {
	p.chunk(`"delta":{"role":"assistant","content":""},"finish_reason":null`)
	call := 0
	for _, part := range a.parts {
		if part.name == "" {
			for _, s := range p.pieces(part.text) {
				p.chunk(`"delta":{"content":` + p.quote(s) + `},"finish_reason":null`)
			}
			continue
		}
		pieces := p.pieces(part.text)
		begin := ""
		if len(pieces) > 0 && rapid.Bool().Draw(p.t, "at once") {
			begin, pieces = pieces[0], pieces[1:]
		}
		p.chunk(fmt.Sprintf(`"delta":{"tool_calls":[{"index":%d,"id":"%s-%d","type":"function","function":{"name":%q,"arguments":%s}}]}`, call, p.id, call, part.name, p.quote(begin)))
		for _, s := range pieces {
			p.chunk(fmt.Sprintf(`"delta":{"tool_calls":[{"index":%d,"function":{"arguments":%s}}]}`, call, p.quote(s)))
		}
		call++
	}
	p.chunk(`"delta":{},"finish_reason":` + p.quote(a.finish))
	p.out.WriteString("data: [DONE]\n\n")
}

func (p *pen) messages(a answer) {
	p.event("message_start", fmt.Sprintf(`,"message":{"id":%q,"content":[],"usage":{"input_tokens":1,"output_tokens":1}}`, p.id))
	for i, part := range a.parts {
		block, delta, member := `{"type":"text","text":""}`, "text_delta", "text"
		if part.name != "" {
			block = fmt.Sprintf(`{"type":"tool_use","id":"%s-%d","name":%q,"input":{}}`, p.id, i, part.name)
			delta, member = "input_json_delta", "partial_json"
		}
		p.event("content_block_start", fmt.Sprintf(`,"index":%d,"content_block":%s`, i, block))
		for _, s := range p.pieces(part.text) {
			p.event("content_block_delta", fmt.Sprintf(`,"index":%d,"delta":{"type":%q,%q:%s}`, i, delta, member, p.quote(s)))
		}
		p.event("content_block_stop", fmt.Sprintf(`,"index":%d`, i))
	}
	p.event("message_delta", `,"delta":{"stop_reason":`+p.quote(a.finish)+`},"usage":{"output_tokens":9}`)
	p.event("message_stop", "")
}

func (p *pen) responses(a answer) {
	head := fmt.Sprintf(`,"response":{"id":%q,"created_at":1,"output":[]}`, p.id)
	p.typed("response.created", head)
	p.typed("response.in_progress", head)
	var whole []string
	for i, part := range a.parts {
		id := fmt.Sprintf("%s-%d", p.id, i)
		at := fmt.Sprintf(`,"item_id":%q,"output_index":%d`, id, i)
		if part.name != "" {
			item := fmt.Sprintf(`{"id":%q,"type":"function_call","call_id":"%s-c","name":%q,"arguments":`, id, id, part.name)
			p.typed("response.output_item.added", fmt.Sprintf(`,"output_index":%d,"item":%s""}`, i, item))
			for _, s := range p.pieces(part.text) {
				p.typed("response.function_call_arguments.delta", at+`,"delta":`+p.quote(s))
			}
			p.typed("response.function_call_arguments.done", at+`,"arguments":`+p.quote(part.text))
			whole = append(whole, item+p.quote(part.text)+"}")
		} else {
			item := fmt.Sprintf(`{"id":%q,"type":"message","role":"assistant","content":[`, id)
			p.typed("response.output_item.added", fmt.Sprintf(`,"output_index":%d,"item":%s]}`, i, item))
			at += `,"content_index":0`
			p.typed("response.content_part.added", at+`,"part":{"type":"output_text","text":"","annotations":[]}`)
			for _, s := range p.pieces(part.text) {
				p.typed("response.output_text.delta", at+`,"logprobs":[],"delta":`+p.quote(s))
			}
			p.typed("response.output_text.done", at+`,"text":`+p.quote(part.text))
			said := `{"type":"output_text","annotations":[],"text":` + p.quote(part.text) + `}`
			p.typed("response.content_part.done", at+`,"part":`+said)
			whole = append(whole, item+said+"]}")
		}
		p.typed("response.output_item.done", fmt.Sprintf(`,"output_index":%d,"item":%s`, i, whole[i]))
	}
	p.typed("response.completed", fmt.Sprintf(`,"response":{"id":%q,"created_at":1,"status":"completed","output":[%s],"usage":{"input_tokens":1,"output_tokens":2}}`, p.id, strings.Join(whole, ",")))
}

// hurt is a stream's bytes as they arrive: cut, or with bytes among them that
// are no text, or whole.
func hurt(t *rapid.T, s string) (bytes string, whole bool) {
	// Spread evenly: the generator favours small numbers.
	at := int(rapid.Uint64().Draw(t, "at") * 0x9e3779b97f4a7c15 >> 16 % uint64(len(s)+1))
	switch rapid.IntRange(0, 3).Draw(t, "fault") {
	case 0: // a cut, a stall or a clean end
		return s[:at], false
	case 1:
		return s[:at] + rapid.SampledFrom([]string{"\xff", "\x00", "\n\n", "\xc3(", "\n"}).Draw(t, "garbage") + s[at:], false
	case 2: // early
		return s[:at/2], false
	}
	return s, true
}

// client reads what it is given as official clients do: event by event, with a
// JSON decoder. It knows nothing of the code under test.
type client struct {
	answer
	names    map[string]bool
	sequence []int
	complete bool
	failed   bool
}

func (c *client) hear(t *rapid.T, body string) {
	c.names = map[string]bool{}
	for _, e := range strings.SplitAfter(body, "\n\n") {
		var data string
		for _, line := range strings.Split(e, "\n") {
			if d, ok := strings.CutPrefix(line, "data: "); ok {
				data += d
			}
		}
		if data == "[DONE]" {
			c.complete = true
		} else if data != "" {
			var m message
			if err := json.Unmarshal([]byte(data), &m); err != nil {
				t.Fatalf("the client was given %q: %v", e, err)
			}
			c.take(&m)
		}
	}
}

type item struct {
	ID, Type, Name string
	CallID         string `json:"call_id"`
	Arguments      string
	Content        []struct{ Text string }
}

type message struct {
	Type, ID string
	Sequence *int `json:"sequence_number"`
	Error    any
	Choices  []struct {
		Text, FinishReason string
		Finish             string `json:"finish_reason"`
		Delta              struct {
			Content   string
			ToolCalls []struct {
				Index    int
				ID       string
				Function struct{ Name, Arguments string }
			} `json:"tool_calls"`
		}
	}
	Message, Response struct {
		ID     string
		Output []item
	}
	Block  item `json:"content_block"`
	Item   item
	ItemID string `json:"item_id"`
	Delta  any
}

func (c *client) say(text string) {
	if n := len(c.parts); n > 0 {
		c.parts[n-1].text += text
	}
}

func (c *client) take(m *message) {
	c.failed = c.failed || m.Error != nil
	for _, ch := range m.Choices {
		c.names[m.ID] = true
		if s := ch.Text + ch.Delta.Content; s != "" {
			if len(c.parts) == 0 {
				c.parts = []part{{}}
			}
			c.say(s)
		}
		for _, call := range ch.Delta.ToolCalls {
			if call.Function.Name != "" {
				c.parts = append(c.parts, part{name: call.Function.Name})
			}
			c.say(call.Function.Arguments)
		}
		c.finish += ch.Finish
	}
	if m.Sequence != nil {
		c.sequence = append(c.sequence, *m.Sequence)
	}
	for _, id := range []string{m.Message.ID, m.Response.ID} {
		if id != "" {
			c.names[id] = true
		}
	}
	switch d := m.Delta.(type) {
	case string:
		c.say(d)
	case map[string]any:
		for _, member := range []string{"text", "partial_json"} {
			if s, ok := d[member].(string); ok {
				c.say(s)
			}
		}
		if s, ok := d["stop_reason"].(string); ok {
			c.finish = s
		}
	}
	switch m.Type {
	case "content_block_start", "response.output_item.added":
		c.parts = append(c.parts, part{name: m.Block.Name + m.Item.Name})
	case "message_stop":
		c.complete = true
	case "response.completed":
		c.complete, c.finish = true, "stop"
		var all answer
		for _, it := range m.Response.Output {
			p := part{it.Name, it.Arguments}
			for _, s := range it.Content {
				p.text += s.Text
			}
			all.parts = append(all.parts, p)
		}
		if !slices.Equal(all.parts, c.parts) {
			c.failed = true // the whole is not the sum of its parts
		}
	}
}

// gateway is the twin of the path from an upstream's bytes to the client: it
// cuts events, passes them on, and splices until there is nobody left to ask.
type gateway struct {
	have *stream.Transcript
	told strings.Builder
}

// play passes on one upstream's stream. It reports whether the answer is
// complete, and whether another may be asked.
func (g *gateway) play(s stream.Stream, m *Machine, body string) (complete, again bool) {
	pass := func(event string) Verdict {
		if m == nil {
			g.told.WriteString(event)
			return Forward
		}
		out, v := m.Event([]byte(event))
		g.told.Write(out)
		return v
	}
	if m == nil {
		s.Transcript = g.have
	}
	for _, e := range cut(body) {
		kind := s.Event([]byte(e))
		switch kind {
		case stream.KindGarbage, stream.KindError:
			return false, true
		case stream.KindSkip, stream.KindHidden:
			continue
		}
		switch v := pass(e); {
		case v > Last:
			return false, false
		case kind == stream.KindLast:
			return v == Last || m == nil, false
		}
	}
	if s.Complete() {
		v := pass(string(s.Closing()))
		return v == Last || m == nil, false
	}
	return false, true
}

// TestNothingIsMixed: whatever upstreams say, and however their streams break,
// what the client hears is the beginning of one upstream's answer, under one
// name, and it is told that it is complete only if it is.
func TestNothingIsMixed(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("4000")
	}
	spliced, diverged := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		path := rapid.SampledFrom([]string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}).Draw(t, "path")
		true1 := drawAnswer(t, path)
		answers := []answer{true1}
		g := &gateway{have: stream.NewTranscript(Limit)}
		bytes, _ := hurt(t, (&pen{t: t, id: "first"}).write(path, true1))
		complete, again := g.play(streamOf(nil, path), nil, bytes)
		if !strings.Contains(g.told.String(), "data: ") {
			return // nothing was given out: that is failover, not a splice
		}
		for i := 0; again && i < 2 && !g.have.Off(); i++ {
			b := other(t, true1)
			answers = append(answers, b)
			m := New(g.have, streamOf(nil, path))
			bytes, whole := hurt(t, (&pen{t: t, id: fmt.Sprintf("replay%d", i)}).write(path, b))
			complete, again = g.play(streamOf(nil, path), m, bytes)
			same := !slices.ContainsFunc(answers, func(a answer) bool { return a.flat() != true1.flat() })
			if whole && !complete && same {
				t.Fatalf("the same answer, and whole, was not taken: %s\nthe client has %s", bytes, g.told.String())
			}
			if m.Level() {
				spliced++
			} else if !again {
				diverged++
			}
		}
		if complete != strings.Contains(g.told.String(), "[DONE]") && complete != strings.Contains(g.told.String(), "message_stop") && complete != strings.Contains(g.told.String(), "response.completed") {
			t.Fatalf("complete %t: %s", complete, g.told.String())
		}
		var c client
		c.hear(t, g.told.String())
		heard := strings.TrimSuffix(c.flat(), "\x03")
		of := slices.IndexFunc(answers, func(a answer) bool {
			return complete && heard == a.flat() || !complete && strings.HasPrefix(a.flat(), heard)
		})
		if of < 0 || c.failed || c.complete != complete {
			t.Fatalf("complete %t (client: %t, contradicted %t): the client heard %q, the answers were %q\n%s", complete, c.complete, c.failed, heard, answers, g.told.String())
		}
		for name := range c.names {
			if name != "first" {
				t.Fatalf("the client knows the answer as %v:\n%s", c.names, g.told.String())
			}
		}
		for i, n := range c.sequence {
			if n != i {
				t.Fatalf("sequence numbers %v", c.sequence)
			}
		}
	})
	t.Logf("%d splices, %d answers that differed", spliced, diverged)
	if spliced < 200 || diverged < 200 {
		t.Error("the cases do not reach both ends")
	}
}
