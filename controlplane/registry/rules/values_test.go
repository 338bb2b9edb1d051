package rules

import (
	"strings"
	"testing"

	"ringmain/controlplane/registry"
)

func TestURLs(t *testing.T) {
	for value, want := range map[string]bool{
		"https://api.example.com":              true,
		"https://api.example.com:8443/a/b":     true,
		"https://127.0.0.1:1":                  true,
		"https://[::1]:9/x":                    true,
		"http://api.example.com":               false,
		"https://":                             false,
		"https:///path":                        false,
		"https:api.example.com":                false,
		"//api.example.com":                    false,
		"https://u:p@api.example.com":          false,
		"https://api.example.com/?q=1":         false,
		"https://api.example.com?":             false,
		"https://api.example.com/#f":           false,
		"https://api.example.com/#":            false,
		"https://api.example.com/\n":           false,
		"https://" + strings.Repeat("a", 2048): false,
	} {
		if err := checkURL("base_url", value, true); (err == nil) != want {
			t.Errorf("%q: %v", value, err)
		}
	}
}

func TestRetentionTerms(t *testing.T) {
	for value, want := range map[string]bool{
		"zero": true, "1d": true, "30d": true, "36500d": true,
		"": false, "0d": false, "d": false, "30": false, "-1d": false, "+1d": false, "01d": false, "36501d": false, "ZERO": false,
	} {
		terms := registry.Terms{Retention: value, PromptCache: "none", Training: "never", Contract: strings.Repeat("0", 64), Dated: "2026-11-01"}
		if err := checkTerms(&terms); (err == nil) != want {
			t.Errorf("%q: %v", value, err)
		}
	}
}
