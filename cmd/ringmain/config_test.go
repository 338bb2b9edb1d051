package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const dataNode = `cluster: dev-1
region: us-east
node: us-east-d1
role: data
data_dir: /x/data
listen: {api: "127.0.0.1:1", peer: "127.0.0.1:2", metrics: "127.0.0.1:3"}
gossip: {lan: "127.0.0.1:4", wan: "127.0.0.1:5", lan_key_file: a, wan_key_file: b}
identity: {dir: i, tls_cert: c, tls_key: k}
seal_key_file: s
cluster_secret_file: cs
documents: {security_txt: DIR/security.txt}
regions:
  - {name: us-east, jurisdiction: us, endpoint: "https://127.0.0.1:8441", control: [{node: us-east-c1, internal: "127.0.0.1:6"}]}
`

// TestValidateReadsDocuments: what would keep the node from starting is said
// beforehand.
func TestValidateReadsDocuments(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "node.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(dataNode, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"Contact: mailto:a@example.com\nExpires: 2099-01-01T00:00:00Z\n": "",
		"Contact: mailto:a@example.com\nExpires: 2020-01-01T00:00:00Z\n": "line 11: documents.security_txt: " + dir + "/security.txt: it expired",
		"Expires: 2099-01-01T00:00:00Z\n":                                "Contact is missing",
	} {
		if err := os.WriteFile(filepath.Join(dir, "security.txt"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		cmd := configCommand(&out)
		cmd.SetArgs([]string{"validate", file})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.ExecuteContext(t.Context())
		if want == "" && (err != nil || !strings.Contains(out.String(), "valid: data node us-east-d1")) {
			t.Errorf("%v, %s", err, out.String())
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestValidateAsJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node \a.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(dataNode, "documents: {security_txt: DIR/security.txt}\n", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"config", "validate", file, "-o", "json"}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d, %s", code, &stderr)
	}
	var got map[string]any
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil || got["file"] != file || got["node"] != "us-east-d1" || got["valid"] != true {
		t.Errorf("%v, %s", err, &stdout)
	}
	for _, args := range [][]string{{"config", "validate", file, "-o", "csv"}, {"version", "-o", "csv"}} {
		if code := run(t.Context(), args, &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), "use table or json") {
			t.Errorf("%v: exit %d, %s", args, code, &stderr)
		}
		stderr.Reset()
	}
}

func TestConfigNeedsAVerb(t *testing.T) {
	for _, args := range [][]string{{"config"}, {"config", "check"}} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), args, &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), "validate") || stdout.Len() > 0 {
			t.Errorf("%v: exit %d, %q, %q", args, code, &stdout, &stderr)
		}
	}
}
