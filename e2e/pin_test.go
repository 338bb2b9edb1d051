package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An org that nobody pinned is pinned to the EU while it is served: from the
// first step on its old key runs in the EU only, and goes on there until the
// operator ends it; its new one works as soon as it is shown; in force is said
// once both regions' data nodes have confirmed; and afterwards the region
// outside holds nothing of it that a node would load.
func TestAnOrgIsPinnedWhileItIsServed(t *testing.T) {
	d, err := startDev(t.TempDir(), 20640, "--regions", "eu-fra:eu,us-east:us", "--control", "1", "--data", "1")
	if err != nil {
		t.Fatal(err)
	}
	d.tells(t)
	stopped := false
	defer func() {
		if !stopped {
			_ = d.stop()
		}
	}()
	token, err := os.ReadFile(d.AdminTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	const eu, us = 0, 1
	call := func(method, path, body string) answer {
		t.Helper()
		return d.ask(t, method, d.Regions[us].Admin+"/admin/v1"+path, body, "authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	write := func(path, body string) string {
		t.Helper()
		a := call("POST", path, body)
		if a.status/100 != 2 {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
		return a.body
	}
	const mark = "wanderer"
	org := field(t, write("/orgs", `{"name":"`+mark+`-org","plan":"enterprise","state":"verified"}`), "id")
	write("/orgs/"+org+"/policies", `{"models":["`+d.Model+`"]}`)
	project := field(t, write("/orgs/"+org+"/projects", `{"name":"`+mark+`-project"}`), "id")
	made := write("/projects/"+project+"/keys", `{"name":"`+mark+`-key"}`)
	old, oldID := field(t, made, "key"), field(t, made, "id")

	client := d.client(false)
	ask := func(region int, key string) (answer, error) {
		return d.tryAsk(t.Context(), client, "POST", d.node(t, region, "data").API+"/v1/chat/completions", chat(d.Model), "authorization", "Bearer "+key)
	}
	is := func(region int, key string, status int, residency, code string) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			a, err := ask(region, key)
			if err == nil && (a.status != status || a.header.Get("idc-residency") != residency && status == 200 || a.header.Get("idc-error-code") != code) {
				err = fmt.Errorf("%d %s %s: %s", a.status, a.header.Get("idc-error-code"), a.header.Get("idc-residency"), a.body)
			}
			return err
		})
	}
	is(us, old, 200, "unpinned", "")
	is(eu, old, 200, "eu", "") // what entered in the EU stays there

	// Somebody uses the old key in the EU all the time.
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		var failed error
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				if n < 3 && failed == nil {
					failed = fmt.Errorf("only %d requests", n)
				}
				done <- failed
				return
			default:
			}
			if a, err := ask(eu, old); failed == nil && (err != nil || a.status != http.StatusOK) {
				failed = fmt.Errorf("request %d: %d %s: %w", n, a.status, a.body, err)
			}
		}
	}()

	// The cluster version is raised when all nodes of a region have been heard.
	var change struct {
		Successor, Phase string
		Keys             []struct{ Old, New string }
	}
	eventually(t, 30*time.Second, func() error {
		a := call("POST", "/orgs/"+org+"/pin", `{"to":"eu"}`)
		if (a.status != http.StatusOK && a.status != http.StatusAccepted) || !strings.Contains(a.body, `"phase":"copied"`) {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return json.Unmarshal([]byte(a.body), &change)
	})
	if change.Phase != "copied" || len(change.Keys) != 1 || change.Keys[0].Old != oldID {
		t.Fatalf("pinned: %+v", change)
	}
	is(us, old, 403, "", "wrong_jurisdiction")
	is(eu, old, 200, "eu", "")
	fresh := field(t, write("/keys/"+oldID+"/reissue", ""), "key")
	is(eu, fresh, 200, "eu", "")
	is(us, fresh, 403, "", "wrong_jurisdiction")
	is(eu, old, 200, "eu", "")
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("an allowed request failed for the sake of the change: %v", err)
	}

	snaps := func() string {
		all, err := filepath.Glob(filepath.Join(d.node(t, us, "data").DataDir, "lkg", "*.snap"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(all, " ")
	}
	before := snaps()
	eventually(t, 30*time.Second, func() error {
		a := call("POST", "/orgs/"+org+"/pin", `{"finish":true}`)
		if !strings.Contains(a.body, `"phase":"erased"`) {
			a = call("POST", "/orgs/"+change.Successor+"/pin", `{"finish":true}`)
		}
		if !strings.Contains(a.body, `"phase":"erased"`) || !strings.Contains(a.body, `"in_force":`) {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	})
	// In force: at once, and not some time later.
	for _, region := range []int{eu, us} {
		if a, err := ask(region, old); err != nil || a.status != http.StatusUnauthorized {
			t.Errorf("in force, and %s answers the old key %v %d %s", d.Regions[region].Name, err, a.status, a.body)
		}
	}
	is(eu, fresh, 200, "eu", "")
	eventually(t, 30*time.Second, func() error {
		if now := snaps(); before == "" || now == before || strings.Contains(now, " ") {
			return fmt.Errorf("data node outside of the jurisdiction keeps generations %q, had %q", now, before)
		}
		return nil
	})

	stopped = true
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	look := func(region int) func(kind, place string, b []byte) {
		return func(kind, place string, b []byte) {
			for _, needle := range []string{mark, change.Successor, change.Keys[0].Old[len("key_any_")+6:]} {
				if bytes.Contains(b, []byte(needle)) {
					found[d.Regions[region].Name+" "+kind+": "+needle] = true
				}
			}
		}
	}
	d.lookInto(t, eu, look(eu))
	d.lookInto(t, us, look(us))
	chance := oldID[len(oldID)-10:]
	for _, what := range []string{"eu-fra state: " + mark, "eu-fra last known good: " + mark, "us-east state: " + chance} {
		if !found[what] { // the revocation of the old key stays
			t.Errorf("the scan does not see %s: it proves nothing", what)
		}
	}
	for what := range found {
		if strings.HasPrefix(what, "us-east ") && !strings.HasSuffix(what, chance) {
			t.Errorf("left outside of the jurisdiction: %s", what)
		}
	}
}
