//go:build linux

package main

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"testing"
)

// TestImage reads an image as the kernel does: header, name, contents, each padded.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	from, image := filepath.Join(dir, "from"), filepath.Join(dir, "image")
	if err := os.WriteFile(from, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeImage(image, map[string]string{"/usr/sbin/program": from}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	type entry struct {
		mode int64
		body string
	}
	got := make(map[string]entry)
	for pos := 0; ; {
		field := func(i int) int64 {
			v, err := strconv.ParseInt(string(b[pos+6+8*i:pos+14+8*i]), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		if !bytes.HasPrefix(b[pos:], []byte("070701")) {
			t.Fatalf("no header at %d", pos)
		}
		size, length := int(field(6)), int(field(11))
		name := string(b[pos+110 : pos+110+length-1])
		if name == "TRAILER!!!" {
			break
		}
		body := (pos + 110 + length + 3) &^ 3
		if parent := path.Dir(name); parent != "." && got[parent].mode != 0o40755 {
			t.Errorf("%s comes before its directory", name)
		}
		got[name] = entry{field(1), string(b[body : body+size])}
		pos = (body + size + 3) &^ 3
	}
	if e := got["usr/sbin/program"]; e.body != "hello" || e.mode != 0o100755 {
		t.Errorf("the program is %o %q", e.mode, e.body)
	}
	for _, d := range []string{"proc", "sys", "dev", "tmp"} {
		if got[d].mode != 0o40755 {
			t.Errorf("%s is %o, want a directory", d, got[d].mode)
		}
	}
}
