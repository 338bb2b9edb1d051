package admin_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/homes"
	"ringmain/internal/testkit/controlkit"
	"ringmain/internal/testkit/logkit"
)

// otherRegions is what the other regions do: they confirm at once, or never.
type otherRegions struct {
	cut      bool
	isolated time.Time
	asked    []controlplane.Shard
	moved    error
}

func (o *otherRegions) Confirmed(ctx context.Context, shard controlplane.Shard, _ controlplane.Point) error {
	o.asked = append(o.asked, shard)
	if !o.cut {
		return nil
	}
	<-ctx.Done()
	return fmt.Errorf("waiting for others: %w", context.Cause(ctx))
}

func (o *otherRegions) Current(ctx context.Context, _ controlplane.Shard) error {
	if !o.cut {
		return nil
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (o *otherRegions) Reach(shard controlplane.Shard) (homes.Reach, error) {
	return homes.Reach{Shard: shard, Role: "home", Isolated: o.isolated}, nil
}

func (o *otherRegions) Takeover(context.Context, controlplane.Shard, homes.TakeoverOptions) (homes.Result, error) {
	return homes.Result{Epoch: controlplane.Epoch{Counter: 2, Region: "us-east"}, Lossless: true}, o.moved
}

func (o *otherRegions) Move(ctx context.Context, shard controlplane.Shard) (homes.Result, error) {
	return o.Takeover(ctx, shard, homes.TakeoverOptions{})
}

func withOthers(o *otherRegions) controlkit.Option {
	return func(cfg *admin.Config) { cfg.Homes, cfg.ConfirmIn = o, 50*time.Millisecond }
}

func TestAcknowledgementLevels(t *testing.T) {
	others := &otherRegions{}
	c := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu", "ap-sg:apac"}, withOthers(others))
	call := caller{t, c.Client()}
	base := c.Regions[0].Nodes[0].URL + "/admin/v1"
	_, project := call.account(base, "any")
	// While regions of the first release are about nobody confirms, and nobody waits.
	others.cut = true
	if r := call.want(201, "POST", base+"/projects/"+project+"/keys", `{"name":"early"}`); r.str("acknowledged") != "region" {
		t.Errorf("%s", r.text)
	}
	call.want(202, "POST", base+"/projects/"+project+"/keys", `{"name":"early"}`, "Ringmain-Acknowledge: multi-region")
	others.cut = false
	for _, r := range c.Regions {
		r.Raise()
	}
	if len(others.asked) != 0 {
		t.Errorf("orgs and projects wait for nobody unless asked to: %v", others.asked)
	}
	const multi, region = "Ringmain-Acknowledge: multi-region", "Ringmain-Acknowledge: region"
	keys := base + "/projects/" + project + "/keys"
	cases := []struct {
		name     string
		others   otherRegions
		url      string
		headers  []string
		status   int
		reached  string // or the error's code
		location bool
	}{
		{name: "keys wait", url: keys, status: 201, reached: "multi-region"},
		{name: "unless told not to", url: keys, headers: []string{region}, status: 201, reached: "region"},
		{name: "others wait if told to", url: base + "/orgs", headers: []string{multi}, status: 201, reached: "multi-region"},
		{name: "nobody confirms in time", others: otherRegions{cut: true}, url: keys, status: 202, reached: "region"},
		{name: "nor for whom did not ask", others: otherRegions{cut: true}, url: base + "/orgs", status: 201, reached: "region"},
		{name: "cut off for long", others: otherRegions{isolated: time.Now()}, url: keys, status: 503, reached: "isolated"},
		{name: "cut off, and not asked", others: otherRegions{isolated: time.Now()}, url: base + "/orgs", status: 503, reached: "isolated"},
		{name: "cut off, and accepted", others: otherRegions{isolated: time.Now()}, url: keys, headers: []string{region}, status: 201, reached: "region"},
		{name: "no such level", url: keys, headers: []string{"Ringmain-Acknowledge: all"}, status: 400, reached: "invalid_header"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			*others = tc.others
			call := caller{t, c.Client()}
			before := len(call.want(200, "GET", keys, "").items())
			r := call.want(tc.status, "POST", tc.url, `{"name":"x"}`, tc.headers...)
			if tc.status >= 400 {
				if r.str("code") != tc.reached {
					t.Errorf("%s", r.text)
				}
				if n := len(call.want(200, "GET", keys, "").items()); n != before {
					t.Error("something was written")
				}
				return
			}
			if got := r.header.Get("Ringmain-Acknowledged"); got != tc.reached || r.str("acknowledged") != tc.reached {
				t.Errorf("header %q, body %q, want %q", got, r.str("acknowledged"), tc.reached)
			}
			if r.header.Get("Location") == "" || (tc.url == keys && r.str("key") == "") {
				t.Errorf("the answer is not whole: %v %s", r.header, r.text)
			}
		})
	}

	// A revocation is never refused.
	*others = otherRegions{cut: true}
	key := call.want(202, "POST", keys, `{"name":"x"}`).str("id")
	*others = otherRegions{cut: true, isolated: time.Now()}
	if r := call.want(202, "POST", base+"/keys/"+key+"/revoke", ""); r.str("revoked") == "" {
		t.Errorf("%s", r.text)
	}
	// From the far side too: the home's words come through unchanged.
	*others = otherRegions{cut: true}
	far := c.Regions[1].Nodes[0].URL + "/admin/v1"
	if r := call.want(202, "POST", far+"/projects/"+project+"/keys", `{"name":"far"}`); r.header.Get("Ringmain-Acknowledged") != "region" {
		t.Errorf("%v", r.header)
	}
}

func TestOneRegionSaysWhatItCannotPromise(t *testing.T) {
	c, base, _, _ := one(t, withOthers(&otherRegions{}))
	_, project := c.account(base, "any")
	url := base + "/projects/" + project + "/keys"
	if r := c.want(201, "POST", url, `{"name":"x"}`); r.str("acknowledged") != "region" {
		t.Errorf("%s", r.text)
	}
	r := c.want(422, "POST", url, `{"name":"y"}`, "Ringmain-Acknowledge: multi-region")
	if !strings.Contains(r.str("detail"), "by region us-east alone") || len(c.want(200, "GET", url, "").items()) != 1 {
		t.Errorf("%s", r.text)
	}
}

func TestShards(t *testing.T) {
	others := &otherRegions{}
	logs := &logkit.Buffer{}
	c := controlkit.Start(t, logs, []string{"us-east:us", "eu-fra:eu"}, withOthers(others))
	call := caller{t, c.Client()}
	us, eu := c.Regions[0].Nodes[0].URL+"/admin/v1", c.Regions[1].Nodes[0].URL+"/admin/v1"
	if r := call.want(200, "GET", us+"/shards", ""); r.str("region") != "us-east" || len(r.items()) != 4 {
		t.Errorf("%s", r.text)
	}
	if r := call.want(200, "GET", us+"/shards?region=eu-fra", ""); r.str("region") != "eu-fra" || len(r.items()) != 4 {
		t.Errorf("another region's: %s", r.text)
	}
	call.want(404, "GET", us+"/shards?region=mars", "")
	if r := call.want(200, "POST", eu+"/shards/any-eu-fra/takeover?region=us-east", `{"live":true}`); r.str("home") != "us-east" || r.str("epoch") != "2/us-east" {
		t.Errorf("%s", r.text)
	}
	for err, want := range map[error]string{homes.ErrHomeLives: "409 home_lives", homes.ErrNoMajority: "503 no_majority", homes.ErrNotMember: "422 invalid", homes.ErrFormerLife: "409 conflict", homes.ErrMoveAborted: "409 move_aborted",
		homes.ErrAlreadyHome: "409 conflict", homes.ErrNoVersion: "409 not_upgraded", homes.ErrBusy: "409 conflict", homes.ErrRival: "409 conflict"} {
		others.moved = fmt.Errorf("eu: %w", err)
		r := call.do("POST", us+"/shards/any-eu-fra/move?region=us-east", "")
		if got := fmt.Sprint(r.status, " ", r.str("code")); got != want || r.str("detail") == "" {
			t.Errorf("%v: %s %s", err, got, r.text)
		}
	}
	call.want(404, "POST", us+"/shards/uk/takeover?region=us-east", "")
	if r := call.want(422, "POST", us+"/shards/any-us-east/quarantine/discard", `{}`); r.str("field") != "ids" {
		t.Errorf("entries that nobody named: %s", r.text)
	}
	call.want(404, "POST", us+"/shards/eu/replayed", `{"entry":""}`) // for control nodes only
	if text := logs.String(); !strings.Contains(text, `"live":true`) || !strings.Contains(text, "shard_takeover_asked") || !strings.Contains(text, "shard_move_asked") || !strings.Contains(text, `"fact":"shard_moved"`) {
		t.Error("no audit fact")
	}
}
