// Package e2e holds tests that meet ringmain as its users do: real processes
// started by `ringmain dev`, the official clients, bad input, killed children.
// It holds no code of its own.
package e2e
