package stream

import (
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// media reads an event of sound, of pictures, or of what was heard: what ends
// the answer, what it cost, what went wrong. All else passes, also what has no
// type, such as vLLM's transcription.chunk. Types are those of the official
// clients (openai-go v3.96: TranscriptionStreamEventUnion, ImageGenStreamEventUnion,
// ImageEditStreamEventUnion; speech.audio.* of
// https://platform.openai.com/docs/api-reference/audio/speech-audio-delta-event),
// transcription.done Mistral's, speech.audio.error vLLM's. OpenAI lets pictures
// and sound end with the connection; after transcripts many servers say [DONE].
func (s *Stream) media(name, data []byte) Kind {
	if marks(data) {
		s.Done = true
		return KindLast
	}
	c := jsontext.Cursor{Data: data}
	if c.Peek() != '{' {
		return KindGarbage
	}
	var given []byte
	var told dialect.Told
	failed := false
	c.Object(func(key []byte) {
		switch string(key) {
		case "type":
			given, _ = c.Text()
		case "error":
			failed = failed || !c.IsNull()
			c.Value()
		case "usage":
			told = dialect.ReadUsage(dialect.OpenAI, &c, &s.Usage)
		default:
			c.Value()
		}
	})
	kind, ok := typeOf(name, given)
	if !c.End() || !ok && len(kind) > 0 {
		return KindGarbage
	}
	s.Usage.Final = s.Usage.Final || told.Closes(true) && s.Usage.Costs()
	closes := false
	switch string(kind) {
	case "keepalive":
		return KindIdle
	case "error", "speech.audio.error":
		failed = true
	case "transcript.text.done", "transcription.done", "speech.audio.done", "image_generation.completed", "image_edit.completed":
		closes = true
	}
	if failed {
		s.failed(data)
		return KindError
	}
	if s.stopped = closes; closes {
		s.closed++
	}
	if closes && s.Complete() {
		return KindClosing
	}
	return KindContent
}
