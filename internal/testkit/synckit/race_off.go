//go:build !race

package synckit

const underRace = false
