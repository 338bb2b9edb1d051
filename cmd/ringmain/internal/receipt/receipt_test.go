package receipt

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	kept  = "../../../../dataplane/receipt/proof/testdata/"
	large = kept + "blake3/" // bodies hashed as large ones are
)

func run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := Command(Env{Stdin: strings.NewReader(stdin), Stdout: &out})
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	c.SilenceErrors, c.SilenceUsage = true, true
	err := c.ExecuteContext(context.Background())
	return out.String(), err
}

func file(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func text(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(kept + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVerify(t *testing.T) {
	// The bodies whose hashes are in testdata; see proof's kit_test.go.
	request := file(t, "request", []byte(`{"model":"sim-chat","messages":[{"role":"user","content":"hello"}]}`))
	response := file(t, "response", []byte(`{"choices":[{"message":{"content":"hi"}}]}`))
	for _, args := range [][]string{
		{"verify", kept + "receipt.json", "--ca", kept + "roots.pem", "--request", request, "--response", response},
		{"verify", kept + "receipt.json", "--jwks", kept + "jwks.json", "--request", request, "--response", response},
		{"verify", kept + "inline.jws", "--jwks", kept + "jwks.json", "--request", request, "--response", response},
		{"verify", kept + "inline.jws", "--jwks", kept + "jwks.json", "--ca", kept + "roots.pem", "--request", request, "--response", response},
		{"verify", large + "receipt.json", "--ca", large + "roots.pem", "--request", request, "--response", response},
		{"verify", large + "inline.jws", "--jwks", large + "jwks.json", "--request", request, "--response", response},
	} {
		out, err := run(t, "", args...)
		if err != nil {
			t.Fatal(args, err)
		}
		tool, algorithm := "| sha256sum\n", "salted sha-256 "
		if strings.Contains(args[1], "blake3") {
			tool, algorithm = "| b3sum\n", "salted blake3 "
		}
		for _, want := range []string{tool, algorithm, `$ { printf %b '\0`, "VERIFIED: req_", "request body given", "response body given", "who signed, not what ran", "eu-fra/eu-fra-d1", "zero-retention", "landlock ABI 7", "attempt 2"} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s", args, want, out)
			}
		}
		out, err = run(t, "", append(args, "-o", "json")...)
		var v struct {
			Verified bool
			Facts    struct {
				RequestID string `json:"request_id"`
			}
		}
		if err != nil || json.Unmarshal([]byte(out), &v) != nil || !v.Verified || v.Facts.RequestID == "" {
			t.Errorf("%v -o json: %v\n%s", args, err, out)
		}
	}
	if out, err := run(t, string(text(t, "receipt.json")), "verify", "-", "--ca", kept+"roots.pem"); err != nil || !strings.Contains(out, "request body: no file was given") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Of an answer that was broken off, it is said how, and what the check was of.
func TestPartOfAnAnswer(t *testing.T) {
	const part = kept + "part/" // its first 17 bytes had been written
	whole := `{"choices":[{"message":{"content":"hi"}}]}`
	out, err := run(t, whole, "verify", part+"receipt.json", "--ca", part+"roots.pem", "--response", "-")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"the first 17 bytes of 42, is the one", "client_gone: the client left", "17 bytes had been sent", "head -c 17 RESPONSE"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if _, err := run(t, whole[:16], "verify", part+"receipt.json", "--ca", part+"roots.pem", "--response", "-"); err == nil || !strings.Contains(err.Error(), "has 16 bytes, and the receipt states the first 17") {
		t.Error(err)
	}
}

// What the worker that executed a request said of itself is shown with its
// attempt, and loudly where zero retention was promised and it did not hold.
func TestConfinementElsewhere(t *testing.T) {
	const elsewhere = kept + "forwarded/" // its second attempt was made by a worker that could be swapped
	for _, from := range [][]string{{"receipt.json", "--ca", elsewhere + "roots.pem"}, {"inline.jws", "--jwks", elsewhere + "jwks.json"}} {
		args := append([]string{"verify", elsewhere + from[0]}, from[1:]...)
		out, err := run(t, "", args...)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"\nWARNING: retention is stated as zero, but the worker of eu-ams/eu-ams-d2, which was sent the request, was not confined: landlock ABI 7, no file write: true, no dump: true, no swap: false\n",
			"attempt 2, confinement", "confinement at entry",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		out, err = run(t, "", append(args, "-o", "json")...)
		var v struct {
			Verified bool
			Warnings []string
		}
		if err != nil || json.Unmarshal([]byte(out), &v) != nil || !v.Verified || len(v.Warnings) != 1 {
			t.Errorf("%v\n%s", err, out)
		}
	}
	out, err := run(t, "", "verify", kept+"receipt.json", "--ca", kept+"roots.pem")
	if err != nil || strings.Contains(out, "WARNING") || !strings.Contains(out, "what confined the worker of eu-ams/eu-ams-d2 in attempt 2: it did not say") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestBodyFromStandardInput(t *testing.T) {
	out, err := run(t, `{"choices":[{"message":{"content":"hi"}}]}`, "verify", kept+"receipt.json", "--ca", kept+"roots.pem", "--response", "-")
	if err != nil || !strings.Contains(out, "response body given") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestRefused(t *testing.T) {
	doc := text(t, "receipt.json")
	other := file(t, "other", []byte("another body"))
	changed := file(t, "changed", bytes.Replace(doc, []byte("zero-retention"), []byte("dedicated:acme"), 1))
	for name, args := range map[string][]string{
		"changed":        {"verify", changed, "--ca", kept + "roots.pem"},
		"another body":   {"verify", kept + "receipt.json", "--ca", kept + "roots.pem", "--request", other},
		"no key":         {"verify", kept + "inline.jws", "--ca", kept + "roots.pem"},
		"no receipt":     {"verify", other, "--ca", kept + "roots.pem"},
		"terminal codes": {"verify", file(t, "esc", []byte("\x1b[2J")), "--ca", kept + "roots.pem"},
	} {
		out, err := run(t, "", args...)
		if err == nil || IsUsage(err) || !strings.Contains(err.Error(), "REFUSED") || out != "" || strings.ContainsRune(err.Error(), 0x1b) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		out, err = run(t, "", append(args, "-o", "json")...)
		var v map[string]any
		if err == nil || json.Unmarshal([]byte(out), &v) != nil || v["verified"] != false || v["reason"] == "" || v["facts"] != nil {
			t.Errorf("%s -o json: %v\n%s", name, err, out)
		}
	}
	// The authority of an HTTPS certificate is easily taken for the nodes' roots.
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(nil, ca, ca, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	https := file(t, "https.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	if _, err := run(t, "", "verify", kept+"receipt.json", "--ca", https); err == nil || !strings.Contains(err.Error(), "not the authority of its HTTPS certificates") {
		t.Errorf("another authority: %v", err)
	}
	for name, args := range map[string][]string{
		"no file":      {"verify", "/nonexistent", "--ca", kept + "roots.pem"},
		"no key set":   {"verify", kept + "receipt.json", "--jwks", "/nonexistent"},
		"bad key set":  {"verify", kept + "receipt.json", "--jwks", other},
		"no roots":     {"verify", kept + "receipt.json", "--ca", "/nonexistent"},
		"bad roots":    {"verify", kept + "receipt.json", "--ca", other},
		"no body file": {"verify", kept + "receipt.json", "--ca", kept + "roots.pem", "--request", "/nonexistent"},
	} {
		if out, err := run(t, "", args...); err == nil || IsUsage(err) || out != "" {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"show"}, {"verify"}, {"verify", "a", "b"}, {"verify", kept + "receipt.json"},
		{"verify", "-", "--ca", kept + "roots.pem", "--request", "-"}, // standard input can be read once
		{"verify", kept + "receipt.json", "--ca", kept + "roots.pem", "--request", "-", "--response", "-"},
		{"verify", kept + "receipt.json", "--ca", kept + "roots.pem", "-o", "yaml"}, {"verify", "--no-such-flag"},
	} {
		if _, err := run(t, "", args...); !IsUsage(err) {
			t.Errorf("%q: %v", args, err)
		}
	}
}
