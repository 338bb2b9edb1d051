//go:build !linux

package rig

import "errors"

// Counter counts nothing on this kernel.
type Counter struct{}

// CountInstructions fails on this kernel.
func CountInstructions(...int) (*Counter, error) {
	return nil, errors.New("this kernel has no perf_event_open(2): count on Linux")
}

// Read gives nothing.
func (*Counter) Read() (Instructions, error) { return Instructions{}, nil }

// Close does nothing.
func (*Counter) Close() error { return nil }
