//go:build race

package nemesis_test

const raceEnabled = true
