package splice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
)

var verdicts = map[Verdict]string{Wait: "wait", Forward: "forward", Last: "last", Diverged: "diverged", Failed: "failed", Declined: "declined"}

func streamOf(t testing.TB, path string) stream.Stream { // t may be nil
	ep, ok := dialect.EndpointOf(path)
	if !ok {
		t.Fatalf("no endpoint %s", path)
	}
	return stream.Stream{Dialect: ep.Dialect, Endpoint: ep, Choices: 1}
}

func cut(events string) (all []string) {
	var s stream.Splitter
	for n := s.Next([]byte(events)); n > 0; n = s.Next([]byte(events)) {
		all = append(all, events[:n])
		events = events[n:]
	}
	return all
}

// sections reads a scenario: text by title.
func sections(t testing.TB, file string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, p := range strings.Split(string(b), "---- ")[1:] {
		title, body, _ := strings.Cut(p, "\n")
		all[title] = body
	}
	return all
}

// TestTranscripts plays the scenarios in testdata: what the client had when
// the first stream broke, what the replay says, what the client is given then,
// and how it ends.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d scenarios: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			section := sections(t, file)
			path := strings.TrimSpace(section["endpoint"])
			have, first := stream.NewTranscript(Limit), streamOf(t, path)
			first.Transcript = have
			for _, e := range cut(section["first"]) {
				if k := first.Event([]byte(e)); k != stream.KindContent && k != stream.KindIdle {
					t.Fatalf("%q is of kind %d", e, k)
				}
			}
			want := strings.TrimSpace(section["end"])
			if have.Off() {
				if want != "off" {
					t.Fatal("the first stream cannot be continued")
				}
				return
			}
			m, got, end := New(have, streamOf(t, path)), "", Wait
			for _, e := range cut(section["replay"]) {
				var out []byte
				out, end = m.Event([]byte(e))
				got += string(out)
				if end > Forward {
					break
				}
			}
			if verdicts[end] != want || got != section["client"] {
				t.Errorf("%s, want %s; the client is given\n%s\nwant\n%s", verdicts[end], want, got, section["client"])
			}
		})
	}
}
