package splice

import (
	"path/filepath"
	"strings"
	"testing"

	"ringmain/dataplane/dialect/stream"
)

// FuzzReplay: whatever two upstreams send, the machine does not fail, and what
// it gives the client is well-formed.
func FuzzReplay(f *testing.F) {
	paths := []string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		section := sections(f, file)
		for i, p := range paths {
			if p == strings.TrimSpace(section["endpoint"]) {
				f.Add(section["first"], section["replay"], uint8(i))
			}
		}
	}
	f.Fuzz(func(t *testing.T, first, replay string, which uint8) {
		path := paths[int(which)%len(paths)]
		g := &gateway{have: stream.NewTranscript(1 << 10)}
		if _, again := g.play(streamOf(nil, path), nil, first); !again || g.have.Off() {
			return
		}
		g.told.Reset()
		g.play(streamOf(nil, path), New(g.have, streamOf(nil, path)), replay)
		check := streamOf(nil, path)
		check.WantsUsage = true
		for _, e := range cut(g.told.String()) {
			if k := check.Event([]byte(e)); k > stream.KindLast {
				t.Fatalf("the client is given an event of kind %d: %q", k, e)
			}
		}
	})
}
