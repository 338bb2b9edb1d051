package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCurl: what people type.
func TestCurl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("curl is needed in CI")
		}
		t.Skip("NOT RUN: no curl on this machine")
	}
	d := routed(t)
	url := d.Regions[0].API + "/v1/chat/completions"
	ask := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}]}`, d.Model, question)
	large := filepath.Join(t.TempDir(), "large.json") // with white space about it, which is JSON
	if err := os.WriteFile(large, []byte(ask+strings.Repeat(" ", 3<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	streamed := strings.Replace(ask, "{", `{"stream":true,`, 1)
	key, json := "authorization: Bearer "+d.APIKey, "content-type: application/json"
	const bare = "--no-progress-meter" // without the two
	answered := []string{`"finish_reason":"stop"`, "\n200 "}
	for _, tc := range []struct {
		name string
		args []string
		in   string
		want []string // in the answer and, on a line of its own, status, version and connections made
	}{
		{"HTTP/2", []string{"-d", ask, url}, "", append(answered, "\n200 2 1")},
		{"HTTP/1.1", []string{"--http1.1", "-d", ask, url}, "", append(answered, "\n200 1.1 1")},
		{"HTTP/1.0", []string{"--http1.0", "-d", ask, url}, "", append(answered, "\n200 1")},
		{"a stream", []string{"-N", "-d", streamed, url}, "", []string{"data: {", "data: [DONE]\n\n", "\n200 2 1"}},
		{"a stream over HTTP/1.0", []string{"-N", "--http1.0", "-d", streamed, url}, "", []string{"data: {", "data: [DONE]\n\n", "\n200 1"}},
		{"from a pipe, HTTP/1.1", []string{"--http1.1", "-X", "POST", "-T", "-", url}, ask, append(answered, "\n200 1.1 1")},
		{"from a pipe, HTTP/2", []string{"-X", "POST", "-T", "-", url}, ask, answered},
		{"a large body, asked for first", []string{"--http1.1", "--expect100-timeout", "20", "-H", "expect: 100-continue", "--data-binary", "@" + large, url}, "", answered},
		{"a large body in pieces", []string{"--http1.1", "-X", "POST", "-H", "transfer-encoding: chunked", "-T", large, url}, "", answered},
		{"compression welcome", []string{"--compressed", "-d", ask, url}, "", answered},
		{"two on one connection, HTTP/1.1", []string{"--http1.1", "-d", ask, url, url}, "", []string{"\n200 1.1 1", "\n200 1.1 0"}},
		{"PUT", []string{"--http1.1", "-T", "-", url}, ask, []string{`"code":"method_not_allowed"`, "takes POST", "\n405 "}},
		{"GET", []string{"-G", url}, "", []string{`"code":"method_not_allowed"`, "takes POST", "\n405 "}},
		{"no content type given", []string{bare, "-H", key, "-d", ask, url}, "", []string{"`content-type: application/json`", "\n400 "}},
		{"a slash too many", []string{"-d", ask, url + "/"}, "", []string{`"code":"not_found"`, "check the path", "\n404 "}},
		{"a path of another prefix", []string{"-d", ask, d.Regions[0].API + "/v1/v1/messages"}, "", []string{`"code":"not_found"`, "\n404 "}},
		{"models, head only", []string{"-I", d.Regions[0].API + "/v1/models"}, "", []string{"content-type: application/json", "\n200 "}},
		{"a page's preflight", []string{bare, "-X", "OPTIONS", "-H", "origin: https://shop.example", "-H", "access-control-request-method: POST", "-H", "access-control-request-headers: authorization", url}, "", []string{`"code":"method_not_allowed"`, "browser", "\n405 "}},
		{"no key", []string{bare, "-H", json, "-d", ask, url}, "", []string{`"code":"invalid_api_key"`, "\n401 "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := []string{"-sS", "--max-time", "20", "--cacert", d.CAFile, "-w", "\n%{http_code} %{http_version} %{num_connects}\n"}
			if tc.args[0] != bare {
				args = append(args, "-H", key, "-H", json)
			}
			cmd := exec.CommandContext(t.Context(), "curl", append(args, tc.args...)...)
			cmd.Stdin = strings.NewReader(tc.in)
			var out, errOut bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errOut
			if err := cmd.Run(); err != nil {
				t.Errorf("%v: %s", err, errOut.String())
			}
			for _, want := range tc.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in %s", want, out.String())
				}
			}
		})
	}
}
