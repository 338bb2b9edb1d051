package wire

import (
	"encoding/base64"
	"fmt"
)

// media is what streams of sound, of pictures and of what was heard share: no
// event begins them, and errors say their type.
type media struct{ OpenAI }

// event is an event of that type, without a name.
func event(kind string, o Object) []byte {
	o["type"] = kind
	return data(o)
}

func (d media) ErrorEvent(_ *Answer, e Error) []byte {
	o := Object{"type": "error"}
	body, _ := d.ErrorBody(e).(Object)
	o["error"] = body["error"]
	return fmt.Appendf(nil, "event: error\ndata: %s\n\n", MustJSON(o))
}

func (media) usage(a *Answer) Object {
	return Object{"input_tokens": a.Prompt, "output_tokens": a.Output, "total_tokens": a.Prompt + a.Output}
}

// declined is how such a stream ends where the provider declines.
var declined = Error{Status: 400, Code: "moderation_blocked", Message: "your request was rejected as a result of our safety system"}

// Transcript is the stream of what was heard.
type Transcript struct{ media }

func (Transcript) Piece(_ *Answer, _ int, text string) []byte {
	return event("transcript.text.delta", Object{"delta": text})
}

func (d Transcript) End(a *Answer) (out, mark []byte) {
	if a.Declined() {
		return d.ErrorEvent(a, declined), nil
	}
	usage := d.usage(a)
	usage["type"] = "tokens"
	usage["input_token_details"] = Object{"text_tokens": 0, "audio_tokens": a.Prompt}
	return event("transcript.text.done", Object{"text": a.TextOf(Text), "usage": usage}), []byte("data: [DONE]\n\n")
}

// Speech is the stream of Answer.Media, a share of it with each piece.
type Speech struct{ media }

func (Speech) Piece(a *Answer, _ int, _ string) []byte {
	n := 0
	for _, p := range a.Parts {
		n += len(p.Pieces)
	}
	from := len(a.Media) * a.events / n
	a.events++
	return event("speech.audio.delta", Object{"audio": base64.StdEncoding.EncodeToString(a.Media[from : len(a.Media)*a.events/n])})
}

func (d Speech) End(a *Answer) (out, mark []byte) {
	if a.Declined() {
		return d.ErrorEvent(a, declined), nil
	}
	return event("speech.audio.done", Object{"usage": d.usage(a)}), nil
}

// Picture is the stream of Answer.Media: with each of the first pieces, as many
// as Answer.Partial, as it looks by then, and whole at the end.
type Picture struct {
	media
	Kind string // image_generation or image_edit
}

func (d Picture) event(a *Answer, kind string, more Object) []byte {
	o := Object{"type": d.Kind + "." + kind, "b64_json": base64.StdEncoding.EncodeToString(a.Media), "created_at": a.Created,
		"size": "1024x1024", "quality": "high", "background": "opaque", "output_format": "png"}
	for name, v := range more {
		o[name] = v
	}
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", o["type"], MustJSON(o))
}

func (d Picture) Piece(a *Answer, _ int, _ string) []byte {
	a.events++
	if a.events > a.Partial {
		return nil
	}
	return d.event(a, "partial_image", Object{"partial_image_index": a.events - 1})
}

func (d Picture) End(a *Answer) (out, mark []byte) {
	if a.Declined() {
		return d.ErrorEvent(a, declined), nil
	}
	usage := d.usage(a)
	usage["input_tokens_details"] = Object{"text_tokens": a.Prompt, "image_tokens": 0}
	return d.event(a, "completed", Object{"usage": usage}), nil
}
