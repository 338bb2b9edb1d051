package registry_test

import (
	"reflect"
	"testing"

	"ringmain/controlplane/registry"
)

func TestNarrowed(t *testing.T) {
	base := registry.Upstream{Name: "a", Region: "us", Auth: "bearer", Credential: []byte("secret"), BaseURL: "https://a", Terms: registry.Terms{Retention: "7d", PromptCache: "memory"}}
	with := func(change func(*registry.Upstream)) *registry.Upstream {
		u := base
		change(&u)
		return &u
	}
	off := with(func(u *registry.Upstream) { u.Disabled = true })
	for name, tc := range map[string]struct{ held, later, want *registry.Upstream }{
		"deleted":               {&base, nil, off},
		"disabled":              {&base, off, off},
		"enabled":               {off, &base, off},
		"in another region":     {&base, with(func(u *registry.Upstream) { u.Region = "eu" }), off},
		"for one org":           {&base, with(func(u *registry.Upstream) { u.Dedicated = "org_1" }), off},
		"for all again":         {with(func(u *registry.Upstream) { u.Dedicated = "org_1" }), &base, with(func(u *registry.Upstream) { u.Dedicated = "org_1" })},
		"for test keys":         {&base, with(func(u *registry.Upstream) { u.Simulated = true }), off},
		"without a credential":  {&base, with(func(u *registry.Upstream) { u.Auth, u.Credential = "none", nil }), off},
		"keeps for longer":      {&base, with(func(u *registry.Upstream) { u.Terms.Retention = "30d" }), with(func(u *registry.Upstream) { u.Terms.Retention = "30d" })},
		"keeps nothing":         {&base, with(func(u *registry.Upstream) { u.Terms.Retention = "zero" }), &base},
		"caches on disk":        {&base, with(func(u *registry.Upstream) { u.Terms.PromptCache = "disk" }), with(func(u *registry.Upstream) { u.Terms.PromptCache = "disk" })},
		"caches nothing":        {&base, with(func(u *registry.Upstream) { u.Terms.PromptCache = "none" }), &base},
		"elsewhere, as before":  {&base, with(func(u *registry.Upstream) { u.BaseURL, u.Credential = "https://b", []byte("other") }), &base},
		"terms that are not so": {&base, with(func(u *registry.Upstream) { u.Terms.Retention = "?" }), with(func(u *registry.Upstream) { u.Terms.Retention = "?" })},
	} {
		if got := tc.held.Narrowed(tc.later); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %#v, want %#v", name, *got, *tc.want)
		}
	}
}
