package caller

import (
	"testing"
	"time"

	"ringmain/controlplane/feed"
	"ringmain/dataplane/view"
)

// A state that is too old judges no key of a class that has a bound: never a
// 401. Other classes go on, and a heartbeat ends it.
func TestOldState(t *testing.T) {
	b := newBench(t)
	id := b.parsed.RecordID()
	minute := func() { b.now.Add(time.Minute.Milliseconds()) }
	beat := func() {
		t.Helper()
		if err := b.store.Apply(&feed.Frame{Type: feed.FrameHeartbeat, Position: b.store.Position(), At: b.now.Load()}); err != nil {
			t.Fatal(err)
		}
	}
	known := func() (code string, behind bool) {
		_, refused, behind := b.checker.Known(b.store.View(), id)
		if refused != nil {
			code = refused.Code
		}
		return code, behind
	}
	beat()
	minute()
	minute()
	if code := b.check(b.whole); code != "" {
		t.Errorf("without a bound: %s", code)
	}
	b.checker.cfg.MaxAge = map[string]time.Duration{"test": time.Second}
	if code := b.check(b.whole); code != "" {
		t.Errorf("with a bound for others: %s", code)
	}
	b.checker.cfg.MaxAge = map[string]time.Duration{"live": 3 * time.Minute}
	if code := b.check(b.whole); code != "" {
		t.Errorf("within the bound: %s", code)
	}
	minute()
	b.now.Add(time.Second.Milliseconds()) // the records are some milliseconds younger than the clock
	if code := b.check(b.whole); code != "not_ready" {
		t.Errorf("beyond the bound: %q", code)
	}
	if code, behind := known(); code != "not_ready" || !behind {
		t.Errorf("for another node: %q, behind: %v", code, behind)
	}
	beat()
	if code := b.check(b.whole); code != "" {
		t.Errorf("heard again: %s", code)
	}
	if code, behind := known(); code != "" || behind {
		t.Errorf("for another node, heard again: %q, behind: %v", code, behind)
	}
	// A revoked key is refused as such, however old the state is.
	b.key.Revoked = 1
	b.put()
	b.now.Add(time.Hour.Milliseconds())
	if code := b.check(b.whole); code != "invalid_api_key" {
		t.Errorf("revoked: %q", code)
	}
	if age := view.New(view.Config{}).View().Age("any", time.Now()); age < 24*time.Hour {
		t.Errorf("nothing known is %v old", age)
	}
}
