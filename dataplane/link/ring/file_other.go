//go:build !linux

package ring

import (
	"errors"
	"os"
)

var errKernel = errors.New("this kernel has no sealed memory that two processes share: run data nodes on Linux")

// Create fails on this kernel.
func Create(int, uint64) (*os.File, error) { return nil, errKernel }

// OpenProducer fails on this kernel.
func OpenProducer(*os.File) (*Producer, error) { return nil, errKernel }

// OpenConsumer fails on this kernel, and closes f.
func OpenConsumer(f *os.File) (*Consumer, error) { return nil, errors.Join(errKernel, f.Close()) }

// OpenProgress fails on this kernel.
func OpenProgress(*os.File) (*Progress, error) { return nil, errKernel }
