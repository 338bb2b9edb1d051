package registry_test

import (
	"bytes"
	"errors"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/recordkit"
)

// Golden files freeze what is on disks and wires: a change to them needs a new
// format version.
func TestGolden(t *testing.T) {
	r := recordkit.Key(recordkit.KeyEU, recordkit.PinEU, recordkit.PrjEU, "live")
	r.Key.PrevHash, r.Key.PrevUntil, r.Key.Expires = []byte("$2a$10$prev"), 7, 9
	e := &registry.Entry{
		Shard: recordkit.PinEU, Epoch: controlplane.Epoch{Counter: 2, Region: "eu-fra"}, Seq: 300, Prev: controlplane.Epoch{Counter: 1, Region: "eu-par"},
		Changes: []registry.Change{
			recordkit.Open("eu-fra", "eu-fra", "eu-par"), recordkit.Put(r), {Op: registry.OpDelete, Kind: registry.KindOrg, ID: recordkit.OrgEU, IfRevision: 12},
			{Op: registry.OpRevoke, Kind: registry.KindKey, ID: recordkit.KeyEU, At: recordkit.Created, Expires: recordkit.Created + 1},
		},
	}
	cmd := &registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{recordkit.Entry(t, e)}}
	encoded, err := registry.EncodeCommand(cmd)
	if err != nil {
		t.Fatal(err)
	}
	record, err := registry.EncodeRecord(recordkit.Upstream(recordkit.UpsUS, "openai-us", "us-east"))
	if err != nil {
		t.Fatal(err)
	}
	stage, err := registry.EncodeCommand(&registry.Command{Type: registry.CmdStage, Stage: &registry.Stage{Shard: recordkit.PinEU, Snapshot: "s1", Chunk: 1, Records: [][]byte{{1}},
		Revocations: []registry.Revocation{{Kind: registry.KindKey, ID: recordkit.KeyEU, Shard: recordkit.PinEU, At: 5}}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"entry": recordkit.Entry(t, e), "command": encoded, "upstream": record, "stage": stage,
	} {
		recordkit.Golden(t, name, b)
	}
	back, err := registry.DecodeEntry(recordkit.Entry(t, e))
	if err != nil || !bytes.Equal(recordkit.Entry(t, back), recordkit.Entry(t, e)) {
		t.Errorf("an entry does not survive its encoding: %v", err)
	}
}

func TestGoldenVersion2(t *testing.T) {
	var all []byte
	for _, c := range recordkit.Commands2(t) {
		b, err := registry.EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		if b[0] != 2 {
			t.Errorf("command %d has the version of the first release", c.Type)
		}
		all = append(all, b...)
	}
	recordkit.Golden(t, "commands-2", all)
	recordkit.Golden(t, "opening-2", recordkit.Entry(t, &registry.Entry{Shard: recordkit.AnyEast, Epoch: recordkit.Two, Seq: 5, Prev: recordkit.One,
		Changes: []registry.Change{registry.Opening("eu-fra", []ownership.Member{{Region: "eu-fra", Since: 3}, recordkit.East}, true)}}))
}

// What the first release wrote is read, and is what it could read.
func TestFirstReleaseIsRead(t *testing.T) {
	for _, name := range []string{"command", "stage"} {
		c, err := registry.DecodeCommand(recordkit.Frozen(t, name))
		if err != nil || c.Needs() != registry.CommandVersion {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCommandsThatDoNotFitVersion2(t *testing.T) {
	for _, c := range recordkit.Commands2(t) {
		b, err := registry.EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range []byte{0, registry.CommandVersion, 3} {
			b[0] = version
			if _, err := registry.DecodeCommand(b); !errors.Is(err, controlplane.ErrUnknownEntry) {
				t.Errorf("command %d under version byte %d: %v", c.Type, version, err)
			}
		}
	}
	e := [][]byte{{1}}
	for _, c := range []*registry.Command{
		{Type: registry.CmdEntry, Entries: e, Levels: []registry.Level{1, 2}}, {Type: registry.CmdEntry, Entries: e, Levels: []registry.Level{3}},
		{Type: registry.CmdAccept, Entries: e, Levels: []registry.Level{1}}, {Type: registry.CmdEntry, Entries: e, Confirmed: 1},
		{Type: registry.CmdSeal}, {Type: registry.CmdSeal, Seal: &registry.Seal{}, Entries: e}, {Type: registry.CmdTake, Seal: &registry.Seal{}},
		{Type: registry.CmdConfirm, Confirm: &registry.Confirm{}, Confirmed: 1}, {Type: registry.CmdResolve, Resolve: &registry.Resolve{}},
		{Type: registry.CmdVersion}, {Type: registry.CmdVersion + 1, Version: 2},
	} {
		if _, err := registry.EncodeCommand(c); !errors.Is(err, controlplane.ErrUnknownEntry) {
			t.Errorf("%+v was encoded: %v", c, err)
		}
	}
}

// TestOldRecordsStayReadable: a record without the later fields is encoded as it
// was before they came.
func TestOldRecordsStayReadable(t *testing.T) {
	for _, r := range []*registry.Record{recordkit.Upstream(recordkit.UpsUS, "openai-us", "us-east"), recordkit.Route(recordkit.RteOne, "gpt-x", "openai-us"), recordkit.Region("us-east", "us"),
		recordkit.Project(recordkit.PrjAny, recordkit.AnyEast, recordkit.OrgAny, "web"), recordkit.Policy(recordkit.PolAny, recordkit.AnyEast, recordkit.OrgAny, "")} {
		b, err := registry.EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		var fields map[int]any
		if err := registry.Decode(b, &fields); err != nil {
			t.Fatal(err)
		}
		later := map[registry.Kind]uint64{registry.KindUpstream: 10, registry.KindRoute: 3, registry.KindRegion: 4, registry.KindProject: 3, registry.KindPolicy: 5}[r.Kind]
		read := false
		for number, body := range fields {
			if m, isBody := body.(map[any]any); isBody && number > 2 {
				read = true
				for field := range m {
					if f, _ := field.(uint64); f > later {
						t.Errorf("%s: field %d is written though it is empty", r.Kind, f)
					}
				}
			}
		}
		if back, err := registry.DecodeRecord(b); !read || err != nil || back.Kind != r.Kind {
			t.Errorf("%s: read %t, %v", r.Kind, read, err)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte{})
	for _, r := range []*registry.Record{recordkit.Key(recordkit.KeyEU, recordkit.PinEU, recordkit.PrjEU, "live"), recordkit.Upstream(recordkit.UpsUS, "x", "us-east"), recordkit.Route(recordkit.RteOne, "m", "x"), recordkit.Region("a", "eu")} {
		b, err := registry.EncodeRecord(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := registry.DecodeRecord(b)
		if err != nil {
			return
		}
		first, err := registry.EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := registry.DecodeRecord(first)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := registry.EncodeRecord(again); err != nil || !bytes.Equal(first, second) {
			t.Errorf("%x came back as %x: %v", b, first, err)
		}
	})
}
