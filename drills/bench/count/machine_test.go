//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFollow(t *testing.T) {
	for name, tc := range map[string]struct {
		console, out, log string
		succeeded         bool
	}{
		"success":   {"boot\r\n==result==\r\n| 1 |\r\n==success==\r\noff\r\n", "| 1 |\n", "boot\noff\n", true},
		"failure":   {"boot\n==result==\n==failure==\n", "", "boot\n", false},
		"cut short": {"boot\n==result==\n| 1", "| 1\n", "boot\n", false},
	} {
		var out, log strings.Builder
		succeeded, err := follow(strings.NewReader(tc.console), &out, &log)
		if err != nil || succeeded != tc.succeeded || out.String() != tc.out || log.String() != tc.log {
			t.Errorf("%s: %t, %v, out %q, log %q", name, succeeded, err, out.String(), log.String())
		}
	}
}

// A line that is too long would otherwise look like the console's end.
func TestFollowEndsAtALineTooLong(t *testing.T) {
	console := resultMark + "\n" + strings.Repeat("x", bufio.MaxScanTokenSize+1) + "\n" + successMark + "\n"
	if _, err := follow(strings.NewReader(console), io.Discard, io.Discard); err == nil {
		t.Error("no error")
	}
}

// TestSetClock gives a small tree a clock and reads it as the specification says.
func TestSetClock(t *testing.T) {
	words := func(v ...uint32) (b []byte) {
		for _, w := range v {
			b = binary.BigEndian.AppendUint32(b, w)
		}
		return b
	}
	const begin, end, property, last = 1, 2, 3, 9
	names := []byte("other\x00clock-frequency\x00")
	body := bytes.Join([][]byte{words(begin, 0, begin), []byte("timer\x00\x00\x00"), words(property, 4, 0, 77, end, end, last)}, nil)
	const header = 40
	file := filepath.Join(t.TempDir(), "tree")
	tree := bytes.Join([][]byte{words(0xd00dfeed, 1000, header, uint32(header+len(body)), header, 17, 16, 0, uint32(len(names)), uint32(len(body))), body, names, make([]byte, 100)}, nil)
	if err := os.WriteFile(file, tree, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := setClock(file, 250e6); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	grown := bytes.Join([][]byte{words(begin, 0, begin), []byte("timer\x00\x00\x00"), words(property, 4, 6, 250e6, property, 4, 0, 77, end, end, last)}, nil)
	want := bytes.Join([][]byte{words(0xd00dfeed, uint32(header+len(grown)+len(names)), header, uint32(header+len(grown)), header, 17, 16, 0, uint32(len(names)), uint32(len(grown))), grown, names}, nil)
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%x\nwant\n%x", got, want)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(tree, []byte("timer"), []byte("tamer")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := setClock(file, 250e6); err == nil {
		t.Error("a tree without a timer was taken")
	}
}
