// Package layering holds no code: its test says which room may import which,
// and why, and that every package says once what it is for.
package layering
