package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExitCodesAndOutput(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("drill: x\nvresion: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"list", exitMet, "region-loss  1", ""},
		{"list -o json", exitMet, `"runbook": "A region is down"`, ""},
		{"version", exitMet, "drills ", ""},
		{"version -o json", exitMet, `"go": "go1`, ""},
		{"run", exitUsage, "", "accepts 1 arg"},
		{"run region-loss", exitUsage, "", "--region"},
		{"run region-loss --region eu -o xml", exitUsage, "", "table or json"},
		{"run region-loss --region eu --rgion us", exitUsage, "", "unknown flag"},
		{"run unplug --region eu", exitUsage, "", "drills list"},
		{"run " + bad + " --region eu", exitUsage, "", "bad.yaml:2: "},
		{"run region-loss --region eu --cluster " + bad + ".none", exitBroken, "", "make run"},
		{"unplug", exitUsage, "", "unknown command"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), strings.Fields(c.args), &stdout, &stderr)
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("drills %s: exit %d, want %d\n%s%s", c.args, code, c.code, &stdout, &stderr)
		}
		if c.code != exitMet && stdout.Len() > 0 {
			t.Errorf("drills %s: an error on stdout: %s", c.args, &stdout)
		}
		if strings.HasSuffix(c.args, "json") && !json.Valid(stdout.Bytes()) {
			t.Errorf("drills %s: no JSON: %s", c.args, &stdout)
		}
	}
}
