package admin_test

import (
	"net/http"
	"strings"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/controlkit"
)

// A beginning that other regions do not hold may be undone by a takeover, and
// what was copied since would be left over: so nothing is copied before they do,
// be the step done here or elsewhere, and whatever the caller asked for.
func TestNothingIsCopiedBeforeTheBeginningIsConfirmed(t *testing.T) {
	call, kit, world, logs := pinCluster(t)
	us, eu := call.base(kit, "us-east"), call.base(kit, "eu-fra")
	pinned := call.want(201, "POST", eu+"/orgs", `{"name":"Pinned","plan":"enterprise","state":"verified","jurisdiction":"eu"}`).str("id")
	free, _ := call.account(us, "any")
	const region = "Ringmain-Acknowledge: region"
	for _, tc := range []struct{ name, base, org, body, shard string }{
		{"elsewhere", us, free, `{"to":"eu"}`, "any-us-east"},
		{"here", eu, pinned, `{"to":"any","region":"eu-fra"}`, "eu"},
	} {
		path := tc.base + "/orgs/" + tc.org + "/pin"
		world.say(func() { world.unconfirmed = controlplane.Shard(tc.shard) })
		for _, headers := range [][]string{{region}, nil, {region}} {
			r := call.want(http.StatusAccepted, "POST", path, tc.body, headers...)
			if r.str("phase") != api.PinBegun || r.str("acknowledged") != api.AcknowledgedRegion || r.header.Get(api.HeaderAcknowledged) != api.AcknowledgedRegion || r.json["survives_region_loss"] != true {
				t.Errorf("%s, %v: %s", tc.name, headers, r.text)
			}
			kit.Region("eu-fra").Nodes[0].View(func(s *ledger.State) {
				if _, ok := s.Get(registry.KindOrg, r.str("successor")); ok || r.str("successor") == "" {
					t.Errorf("%s, %v: %q is there already", tc.name, headers, r.str("successor"))
				}
			})
		}
		if n := strings.Count(logs.String(), `"org_pin_begun","actor":"tester","id":"`+tc.org); n != 1 {
			t.Errorf("%s: begun %d times", tc.name, n)
		}
		world.say(func() { world.unconfirmed = "" })
		if r := call.want(http.StatusOK, "POST", path, tc.body, region); r.str("phase") != api.PinCopied {
			t.Errorf("%s, confirmed: %s", tc.name, r.text)
		}
	}
}

// undone has home take the shard over at point, as one that never heard of what
// came after it; the regions hear of that.
func undone(t *testing.T, regions []*controlkit.Region, home string, shard controlplane.Shard, point controlplane.Point) {
	t.Helper()
	opening := registry.Opening(home, []ownership.Member{{Region: "eu-ams"}, {Region: "eu-fra"}, {Region: "us-east"}}, false)
	e := &registry.Entry{Shard: shard, Epoch: controlplane.Epoch{Counter: point.Epoch.Counter + 1, Region: home}, Seq: point.Seq + 1, Prev: point.Epoch, Changes: []registry.Change{opening}}
	b, err := registry.EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, region := range regions {
		out, err := region.Nodes[0].ProposeCommand(t.Context(), &registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}})
		if err != nil || out.Err != nil || len(out.Cut) == 0 {
			t.Fatalf("%s: %v %+v", region.Name, err, out)
		}
	}
}

// A change whose beginning was undone is shown as it is, does not go on, and is
// begun again once its successor is deleted.
func TestAChangeThatWasCutOffIsBegunAgain(t *testing.T) {
	call, kit, world, _ := pinCluster(t)
	us := call.base(kit, "us-east")
	org := call.want(201, "POST", us+"/orgs", `{"name":"Acme","plan":"enterprise","state":"verified"}`).str("id")
	before := world.position("us-east")["any-us-east"]
	to := call.want(200, "POST", us+"/orgs/"+org+"/pin", `{"to":"eu"}`).str("successor")
	undone(t, kit.Regions, "eu-fra", "any-us-east", before)

	r := call.want(200, "GET", us+"/orgs/"+to+"/pin", "")
	if r.str("phase") != api.PinCutOff || r.str("org") != org || r.str("successor") != to {
		t.Errorf("status: %s", r.text)
	}
	for _, tc := range [][2]string{{org, `{"to":"eu"}`}, {to, `{"to":"any"}`}, {to, `{"finish":true}`}} {
		r := call.want(409, "POST", us+"/orgs/"+tc[0]+"/pin", tc[1])
		if r.str("code") != "conflict" || !strings.Contains(r.text, org+" is as it was") || !strings.Contains(r.text, to+" was to take its place") {
			t.Errorf("%v: %s", tc, r.text)
		}
	}
	call.want(200, "DELETE", us+"/orgs/"+to, "")
	if r := call.want(200, "POST", us+"/orgs/"+org+"/pin", `{"to":"eu"}`); r.str("phase") != api.PinCopied {
		t.Errorf("begun again: %s", r.text)
	}
}

// A copy that does not have the beginning looks as if that was undone: its region
// asks the home before it says so, or lets the successor go.
func TestACopyThatIsBehindCallsNothingCutOff(t *testing.T) {
	call, kit, world, _ := pinCluster(t)
	us, eu := call.base(kit, "us-east"), call.base(kit, "eu-fra")
	org := call.want(201, "POST", us+"/orgs", `{"name":"Acme","plan":"enterprise","state":"verified"}`).str("id")
	before := world.position("us-east")["any-us-east"]
	to := call.want(200, "POST", us+"/orgs/"+org+"/pin", `{"to":"eu"}`).str("successor")
	undone(t, []*controlkit.Region{kit.Region("eu-fra")}, "us-east", "any-us-east", before)

	for _, tc := range [][3]string{
		{"GET", eu + "/orgs/" + to + "/pin", ""},
		{"POST", us + "/orgs/" + org + "/pin", `{"to":"eu"}`}, {"DELETE", eu + "/orgs/" + to, ""},
	} {
		if r := call.want(503, tc[0], tc[1], tc[2]); r.str("code") != api.CodeNotReady {
			t.Errorf("%v: %s", tc, r.text)
		}
	}
}

// What is ended for good waits until other regions hold what takes its place.
func TestNothingEndsBeforeTheCopyIsConfirmed(t *testing.T) {
	call, kit, world, _ := pinCluster(t)
	us := call.base(kit, "us-east")
	org, keys := call.furnished(us, "any")
	call.want(http.StatusOK, "POST", us+"/orgs/"+org+"/pin", `{"to":"eu"}`)
	world.say(func() { world.unconfirmed = "eu" })
	for _, headers := range [][]string{{"Ringmain-Acknowledge: region"}, nil} {
		r := call.want(http.StatusAccepted, "POST", us+"/orgs/"+org+"/pin", `{"finish":true,"without":2}`, headers...)
		if r.str("phase") != api.PinCopied {
			t.Errorf("%v: %s", headers, r.text)
		}
		if r := call.want(200, "GET", us+"/keys/"+keys[0], ""); r.json["revoked"] != nil {
			t.Errorf("%v: revoked already: %s", headers, r.text)
		}
	}
	world.say(func() { world.unconfirmed = "" })
	if r := call.want(200, "POST", us+"/orgs/"+org+"/pin", `{"finish":true,"without":2}`); r.str("phase") != api.PinErased {
		t.Errorf("confirmed: %s", r.text)
	}
}
