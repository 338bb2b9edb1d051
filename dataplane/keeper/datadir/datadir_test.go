package datadir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"ringmain/controlplane"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOneNodeAndOneProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	lock, err := Take(dir, "c", "n")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o002 != 0 {
		t.Errorf("it stays open to everybody: %v %v", info.Mode(), err)
	}
	if other, err := Take(dir, "c", "n"); err == nil || other != nil {
		t.Errorf("two processes have it: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	for _, who := range [][2]string{{"c", "m"}, {"d", "n"}} {
		if other, err := Take(dir, who[0], who[1]); !errors.Is(err, controlplane.ErrWrongCluster) || other != nil {
			t.Errorf("it was given to %v: %v", who, err)
		}
	}
	if lock, err = Take(dir, "c", "n"); err != nil {
		t.Fatalf("its own node: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "owner.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if other, err := Take(dir, "c", "n"); err == nil || other != nil {
		t.Errorf("nobody knows whose it is, and it was given: %v", err)
	}
}
