package node

import (
	"os"
	"path/filepath"
	"testing"

	"ringmain/cmd/ringmain/internal/config"
)

// TestMemory: what may be used is the least of what machine and groups allow.
func TestMemory(t *testing.T) {
	const gib = 1 << 30
	machine := "MemFree:  1 kB\nMemTotal:        8388608 kB\nSwapTotal: 5 kB\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  uint64
		conns int
	}{
		"nothing tells":      {nil, 0, 131072},
		"a machine":          {map[string]string{"proc/meminfo": machine}, 8 * gib, 83886},
		"nonsense":           {map[string]string{"proc/meminfo": "MemTotal: much\n", "proc/self/cgroup": "0::\n"}, 0, 131072},
		"a group":            {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "2147483648\n"}, 2 * gib, 20971},
		"the group above":    {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "1073741824\n"}, gib, 10485},
		"a container":        {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, gib, 10485},
		"a group without":    {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "1:cpu:/a\n0::/a\n"}, 8 * gib, 83886},
		"more than there is": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "1099511627776\n"}, 8 * gib, 83886},
		"a large machine":    {map[string]string{"proc/meminfo": "MemTotal: 268435456 kB\n"}, 256 * gib, 131072},
		"a tiny one":         {map[string]string{"proc/meminfo": "MemTotal: 65536 kB\n"}, gib / 16, 1024},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range c.files {
				file = filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := memory(root); got != c.want || connsWithin(got, 0) != c.conns {
				t.Errorf("%d bytes for %d connections, want %d for %d", got, connsWithin(got, 0), c.want, c.conns)
			}
		})
	}
	for _, c := range []struct {
		files uint64
		want  int
	}{{0, 83886}, {1 << 20, 83886}, {20000, 10000}, {1024, 512}, {1, 1}} {
		if got := connsWithin(8*gib, c.files); got != c.want {
			t.Errorf("%d connections with %d files, want %d", got, c.files, c.want)
		}
	}
	total := connsWithin(memory("/"), files())
	for _, c := range []struct{ conns, total, wantConns, wantTotal int }{
		{0, 0, total / 8, total}, {7, 0, 7, total}, {0, 5, 0, 5}, {7, 5, 7, 5},
	} {
		cfg := new(config.Config)
		cfg.Tunables.Edge.Conns, cfg.Tunables.Edge.TotalConns = uint32(c.conns), uint32(c.total)
		if got := edgeOf(cfg); got.Conns != c.wantConns || got.Total != c.wantTotal {
			t.Errorf("%d of a source and %d in all became %d and %d", c.conns, c.total, got.Conns, got.Total)
		}
	}
}
