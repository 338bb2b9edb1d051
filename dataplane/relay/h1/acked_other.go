//go:build !linux

package h1

// acked is not known here.
func acked(int) (uint64, bool) { return 0, false }
