//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigure asks apt what it makes of the configuration on a host with hooks.
func TestConfigure(t *testing.T) {
	if _, err := exec.LookPath("apt-config"); err != nil {
		t.Skip("no apt on this machine")
	}
	dir := t.TempDir()
	host := filepath.Join(dir, "host.conf")
	var text strings.Builder
	for _, h := range hooks {
		text.WriteString(h + ` { "touch /planted"; };` + "\n")
	}
	if err := os.WriteFile(host, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	dump := func(args ...string) string {
		cmd := exec.Command("apt-config", append(args, "dump")...)
		cmd.Env = append(os.Environ(), "APT_CONFIG="+host)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if !strings.Contains(dump(), "touch /planted") {
		t.Fatal("the host has no hooks: this shows nothing")
	}
	file, err := configure(filepath.Join(dir, "apt"))
	if err != nil {
		t.Fatal(err)
	}
	got := dump("-c", file)
	if strings.Contains(got, "touch") || strings.Contains(got, "-Invoke::") {
		t.Error("a hook of the host would run")
	}
	for _, want := range []string{`Dir::State "` + dir, `Dir::State::status "` + dir, `Dir::Cache "` + dir, `APT::Update::Error-Mode "any"`, `APT::Architectures:: "arm64"`} {
		if !strings.Contains(got, want) {
			t.Errorf("apt knows nothing of %s", want)
		}
	}
}
