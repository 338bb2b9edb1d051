//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// writeImage writes an archive in cpio's "newc" format, from which the kernel
// makes its first root: the files by their paths there, and what daemons expect.
func writeImage(name string, files map[string]string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	inode := 0
	entry := func(name string, mode fs.FileMode, kind, size int, from io.Reader) error {
		inode++
		links, zero := 1, 0
		name = strings.TrimPrefix(name, "/")
		// All numbers are eight hexadecimal digits; names and contents are padded to four bytes.
		_, err := fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00%s", inode, kind|int(mode), zero, zero, links, zero, size,
			zero, zero, zero, zero, len(name)+1, zero, name, padding(110+len(name)+1))
		if err != nil || from == nil {
			return err
		}
		n, err := io.Copy(w, from)
		if err == nil && n != int64(size) {
			err = fmt.Errorf("%s changed while it was read", name)
		}
		_, padErr := w.WriteString(padding(size))
		return errors.Join(err, padErr)
	}
	const directory, regular = 0o040000, 0o100000
	dirs := map[string]bool{"/dev": true, "/proc": true, "/sys": true, "/tmp": true, "/etc": true, "/root": true, "/run": true, "/var/log/nginx": true, "/var/lib/nginx": true}
	for at := range files {
		dirs[path.Dir(at)] = true
	}
	for _, d := range slices.Collect(maps.Keys(dirs)) {
		for ; d != "/"; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	delete(dirs, "/")
	for _, d := range slices.Sorted(maps.Keys(dirs)) { // parents first
		if err := entry(d, 0o755, directory, 0, nil); err != nil {
			return err
		}
	}
	for _, f := range [][2]string{{"/etc/passwd", "root:x:0:0:root:/root:/none\n"}, {"/etc/group", "root:x:0:\n"}, {"/etc/hosts", "127.0.0.1 localhost\n"}} {
		if err := entry(f[0], 0o644, regular, len(f[1]), strings.NewReader(f[1])); err != nil {
			return err
		}
	}
	for _, at := range slices.Sorted(maps.Keys(files)) {
		b, err := os.ReadFile(files[at])
		if err != nil {
			return err
		}
		if err := entry(at, 0o755, regular, len(b), strings.NewReader(string(b))); err != nil {
			return err
		}
	}
	return errors.Join(entry("TRAILER!!!", 0, 0, 0, nil), w.Flush())
}

func padding(size int) string { return "\x00\x00\x00"[:-size&3] }
