package cli

import "testing"

func TestCleanKeepsNamesFromSteeringTheTerminal(t *testing.T) {
	for in, want := range map[string]string{"": "-", "Ünï 漢字": "Ünï 漢字", "a\x1b[2Jb": "a?[2Jb", "a\u202eb\u2066c": "a?b?c", "a\u0085b": "a?b"} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}
