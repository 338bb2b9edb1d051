// Package scenarios carries the drills that ship with the tool. It holds files,
// no code that acts.
package scenarios

import "embed"

// Files are the scenarios, one YAML file each, named after the drill.
//
//go:embed *.yaml
var Files embed.FS
