//go:build !linux

package main

import "errors"

// pin fails on this kernel.
func pin([]int, ...int) error {
	return errors.New("this kernel pins no process to a processor: measure on Linux")
}
