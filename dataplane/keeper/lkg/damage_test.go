package lkg

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

var damages = map[string]func(t *testing.T, path string){
	"flipped byte at the start":  flip(func(size int64) int64 { return 2 }),
	"flipped byte in the middle": flip(func(size int64) int64 { return size / 2 }),
	"flipped byte at the end":    flip(func(size int64) int64 { return size - 1 }),
	"cut in the middle":          cut(func(size int64) int64 { return size / 2 }),
	"last byte missing":          cut(func(size int64) int64 { return size - 1 }),
	"zero length":                cut(func(int64) int64 { return 0 }),
	"another file's content": func(t *testing.T, path string) {
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho this is not it\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	},
}

func flip(at func(int64) int64) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		b := must(os.ReadFile(path))
		b[at(int64(len(b)))] ^= 0x40
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func cut(at func(int64) int64) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		info := must(os.Stat(path))
		if err := os.Truncate(path, at(info.Size())); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamagedGenerations damages the newest one, two and three of three generations.
func TestDamagedGenerations(t *testing.T) {
	for name, damage := range damages {
		for depth := 1; depth <= 3; depth++ {
			t.Run(fmt.Sprintf("%s/%d", name, depth), func(t *testing.T) {
				r := newRig(t)
				s := r.open()
				for n := range uint64(3) {
					r.generation(s, snapshot(10*(n+1), fmt.Sprint("of", n+1))...)
				}
				r.append(s, entry(31, revoke("gone")))
				r.close(s)
				for n := 3; n > 3-depth; n-- {
					damage(t, filepath.Join(r.cfg.Dir, "lkg", fileName(uint64(n), 0)))
				}
				s = r.open()
				defer r.close(s)
				switch depth {
				case 1:
					r.check(s, 2, "reset of2 end20")
				case 2:
					r.check(s, 1, "reset of1 end10")
				case 3:
					r.check(s, 0, "")
				}
				st := s.Stats()
				if st.Damage["generation"] != depth || !st.RolledBack || st.Unknown {
					t.Errorf("%+v", st)
				}
				if r.revoked(s) != "gone" {
					t.Errorf("revoked %q: a revocation outlives the generations", r.revoked(s))
				}
				for n := 3; n > 3-depth; n-- {
					if file := fileName(uint64(n), 0); !strings.Contains(r.log.String(), file) {
						t.Errorf("%s is not named in the log", file)
					} else if _, err := os.Stat(filepath.Join(r.cfg.Dir, "lkg", file+".bad")); err != nil {
						t.Error(err)
					}
				}
				r.generation(s, snapshot(40, "new")...)
				r.check(s, 4, "reset new end40")
			})
		}
	}
}

func TestDamagedDelta(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := r.open()
			r.generation(s, snapshot(1, "a")...)
			for seq := range uint64(20) {
				r.append(s, entry(seq+2))
			}
			died(s)
			damage(t, filepath.Join(r.cfg.Dir, "lkg", fileName(1, 1)))
			s = r.open()
			at := s.Position()[shard].Seq
			if at < 1 || at > 20 {
				t.Errorf("position %d", at)
			}
			// The feed brings the rest, into a file of its own.
			for seq := at + 1; seq <= 25; seq++ {
				r.append(s, entry(seq))
			}
			whole := r.replay(s)
			if !strings.HasSuffix(whole, " 24 25") || strings.Count(whole, " ") != 26 {
				t.Errorf("replay gives %q", whole)
			}
			r.close(s)
			s = r.open()
			r.check(s, 1, whole)
			r.close(s)
		})
	}
}

func TestDamagedSafetyFile(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := r.open()
			r.generation(s, snapshot(1, "a", "b")...)
			for seq := range uint64(10) {
				r.append(s, entry(seq+2, revoke(fmt.Sprint("gone", seq))))
			}
			r.generation(s, snapshot(11, "a", "b")...) // it notes how many revocations there are
			died(s)
			damage(t, filepath.Join(r.cfg.Dir, safetyName))
			s = r.open()
			if name == "last byte missing" || name == "flipped byte at the end" {
				// The last entry is a mark: what was lost is no revocation. A torn
				// tail is how a crash looks; a tampered entry is not.
				if name == "last byte missing" && (s.Stats().Unknown || s.Stats().Revocations != 10) {
					t.Errorf("%+v", s.Stats())
				}
				if name == "flipped byte at the end" && !s.Stats().Unknown {
					t.Error("a tampered entry must not pass")
				}
				died(s)
				return
			}
			if st := s.Stats(); !st.Unknown || st.Damage["safety"] == 0 && !strings.Contains(r.log.String(), "lost entries") {
				t.Fatalf("%+v", st)
			}
			if !strings.Contains(r.log.String(), filepath.Join(r.cfg.Dir, safetyName)) || !s.Due() {
				t.Errorf("the file is not named, or no full state is asked for: %s", r.log)
			}
			r.append(s, entry(12, revoke("later")))
			died(s)
			s = r.open() // still unknown after another start
			if !s.Stats().Unknown {
				t.Fatal("a restart made the unknown known")
			}
			frames := snapshot(20, "a")
			frames = slices.Insert(frames, 2, &feed.Frame{Type: feed.FrameRevocation, Shard: shard, Revocation: &registry.Revocation{Kind: registry.KindKey, ID: "gone5", Shard: shard}})
			r.generation(s, frames...)
			if s.Stats().Unknown || !strings.Contains(r.revoked(s), "gone5") {
				t.Errorf("after a full state: %+v, revoked %q", s.Stats(), r.revoked(s))
			}
			died(s)
			s = r.open()
			if s.Stats().Unknown || !strings.Contains(r.revoked(s), "gone5") {
				t.Errorf("after a start: %+v, revoked %q", s.Stats(), r.revoked(s))
			}
			r.close(s)
		})
	}
}

func TestMissingSafetyFile(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.generation(s, snapshot(1, "a")...)
	r.close(s)
	if err := os.Remove(filepath.Join(r.cfg.Dir, safetyName)); err != nil {
		t.Fatal(err)
	}
	s = r.open()
	if !s.Stats().Unknown {
		t.Error("a node that had state must have a safety file")
	}
	r.close(s)
}
