package history

import (
	"fmt"
	"os"
	"strings"
)

// life tells one process from the next of the same number, and what it does:
// state is "" for one that is gone or only waits to be reaped.
func life(pid int) (state, born string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", ""
	}
	end := strings.LastIndex(string(b), ") ") // of the name, which may hold anything
	f := strings.Fields(string(b[end+1:]))
	if end < 0 || len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return "", ""
	}
	return f[0], f[19]
}
