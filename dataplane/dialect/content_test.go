package dialect

import (
	"bytes"
	"encoding/gob"
	hexes "encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const canary = "canary-7c1f-prompt"

// shows gives the form of the canary that s shows; "" = none. However a byte
// slice is printed, four bytes in a row of it are telling.
func shows(s string) string {
	for i := range len(canary) - 4 {
		part := canary[i : i+4]
		hexed := hexes.EncodeToString([]byte(part))
		for _, form := range []string{
			part, hexed, strings.ToUpper(hexed),
			fmt.Sprintf("% x", part), fmt.Sprintf("% X", part), fmt.Sprintf("%# x", part),
			strings.Trim(fmt.Sprintf("%d", []byte(part)), "[]"),
			strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", []byte(part)), "[]byte{"), "}"),
			strings.Trim(fmt.Sprintf("%o", []byte(part)), "[]"), strings.Trim(fmt.Sprintf("%b", []byte(part)), "[]"),
			strings.Trim(fmt.Sprintf("%c", []byte(part)), "[]"), strings.Trim(fmt.Sprintf("%q", []byte(part)), "[]"),
			strings.Trim(fmt.Sprintf("%U", []byte(part)), "[]"),
		} {
			if strings.Contains(s, form) {
				return form
			}
		}
	}
	return ""
}

// held is content in every kind of unexported field.
type held[T any] struct {
	plain   T
	pointer *T
	slice   []T
	array   [1]T
	keyed   map[string]T
	any     any
	deep    struct{ inner struct{ pointer **T } }
	embed[T]
}

type embed[T any] struct{ inside T }

// Shown is content in exported fields, which encodings read.
type Shown[T any] struct {
	Plain   T
	Pointer *T
	Slice   []T
	Keyed   map[string]T
	Any     any
}

func holders[T any](v T) []any {
	p := &v
	h := held[T]{plain: v, pointer: p, slice: []T{v}, array: [1]T{v}, keyed: map[string]T{"k": v}, any: v, embed: embed[T]{v}}
	h.deep.inner.pointer = &p
	s := Shown[T]{Plain: v, Pointer: p, Slice: []T{v}, Keyed: map[string]T{"k": v}, Any: v}
	return []any{v, p, &p, []T{v}, [1]T{v}, map[string]T{"k": v}, h, &h, []any{h}, map[string]any{"k": &h}, s, &s, struct{ in any }{h},
		func() T { return v }, make(chan T)}
}

// leaks prints v in every way a program might, and gives what shows the canary.
func leaks(v any) (all []string) {
	note := func(how, out string) {
		if form := shows(out); form != "" {
			all = append(all, fmt.Sprintf("%s of %T shows %q", how, v, form))
		}
	}
	for _, verb := range "vsqxXdobOtcUeEfFgGpTw" {
		for _, flags := range []string{"", "+", "#", "# ", " ", "+#", "-", "0", "20", ".3", "-20.5"} {
			format := "%" + flags + string(verb)
			note(format, fmt.Sprintf(format, v))
			note("error "+format, fmt.Errorf("x: "+format, v).Error())
		}
	}
	note("errors.Join", errors.Join(fmt.Errorf("%v", v), fmt.Errorf("%+v", v)).Error())
	note("Sprint", fmt.Sprint(v)+fmt.Sprintln(v, v))
	var text bytes.Buffer
	for name, h := range map[string]slog.Handler{"text": slog.NewTextHandler(&text, nil), "json": slog.NewJSONHandler(&text, nil)} {
		log := slog.New(h)
		log.Info("m", "v", v, "group", slog.GroupValue(slog.Any("v", v)))
		log.With("v", v).WithGroup("g").Error("m", slog.Any("list", []any{v}))
		note("slog "+name, text.String())
		text.Reset()
	}
	out, _ := json.Marshal(v) // what cannot be encoded is not shown either
	note("json", string(out))
	out, err := json.Marshal(map[string]any{"v": v})
	note("json map", string(out)+fmt.Sprint(err))
	out, err = xml.Marshal(v)
	note("xml", string(out)+fmt.Sprint(err))
	var coded bytes.Buffer
	err = gob.NewEncoder(&coded).Encode(v)
	note("gob", coded.String()+fmt.Sprint(err))
	return all
}

// TestContentIsNeverShown holds content in every way and prints it in every way.
func TestContentIsNeverShown(t *testing.T) {
	raw := []byte(canary)
	for _, v := range holders(raw) { // the test itself must be able to fail
		if _, fn := v.(func() []byte); len(leaks(v)) == 0 && !fn && fmt.Sprintf("%T", v) != "chan []uint8" {
			t.Errorf("no leak seen of %T", v)
		}
	}
	content := Conceal(raw)
	body := WholeBody(raw)
	var all []any
	all = append(all, holders(content)...)
	all = append(all, holders(body)...)
	all = append(all, holders(body.NewReader())...)
	all = append(all, holders(&body)...)
	for _, v := range all {
		for _, leak := range leaks(v) {
			t.Error(leak)
		}
	}
	for _, v := range []any{content, &content, body, &body, body.NewReader()} {
		for _, verb := range []string{"%v", "%s", "%+v", "%#v", "%q", "%x", "%d"} {
			if s := fmt.Sprintf(verb, v); s != contentText {
				t.Errorf("%s of %T prints %s", verb, v, s)
			}
		}
	}
	if out, err := json.Marshal(Shown[Content]{Plain: content}); err != nil || !strings.Contains(string(out), `"Plain":"[content]"`) {
		t.Errorf("%s %v", out, err)
	}
}

func TestContentIsTheBytes(t *testing.T) {
	for _, want := range [][]byte{nil, {}, []byte("a"), make([]byte, 3, 10)} {
		c := Conceal(want)
		got := c.Bytes()
		if !bytes.Equal(got, want) || cap(got) != cap(want) || c.Len() != len(want) {
			t.Errorf("%v: got %v, cap %d", want, got, cap(got))
		}
		if cap(want) > len(want) {
			if grown := append(got, 'x'); &grown[0] != &want[0] {
				t.Error("appending does not use the memory that is there")
			}
		}
	}
	var zero Content
	if zero.Bytes() != nil || zero.Len() != 0 {
		t.Error("the zero Content is not empty")
	}
	b := []byte(canary)
	if n := testing.AllocsPerRun(100, func() {
		c := Conceal(b)
		if len(c.Bytes()) != len(b) {
			t.Fatal("lost")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
