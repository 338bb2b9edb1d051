package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/lkg"
	"ringmain/dataplane/keeper/lkg/safety"
)

// A build that writes down, beside each node's configuration, every plaintext
// that is sealed for a disk, and every request and answer on the internal
// listener by who asked: the feeds, the words between regions, what is forwarded.
var recording = []edit{
	{"controlplane/seal/recording.go", "", `package seal

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
)

var recordMu sync.Mutex

func record(parts ...[]byte) {
	recordMu.Lock()
	defer recordMu.Unlock()
	for _, arg := range os.Args {
		if !strings.HasSuffix(arg, "node.yaml") {
			continue
		}
		f, err := os.OpenFile(filepath.Join(filepath.Dir(arg), "recorded.sealed"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		for _, p := range parts {
			if _, err := f.Write(append(p[:len(p):len(p)], '\n')); err != nil {
				panic(err)
			}
		}
		if err := f.Close(); err != nil {
			panic(err)
		}
	}
}
`},
	{"controlplane/seal/seal.go", "\treturn b.aead.Seal(dst, nil, plaintext,", "\trecord(plaintext, aad)\n\treturn b.aead.Seal(dst, nil, plaintext,"},
	{"controlplane/seal/stream.go", "\tnonce, aad := w.frames.next(final)\n", "\trecord(p)\n\tnonce, aad := w.frames.next(final)\n"},
	{"cmd/ringmain/internal/node/recording.go", "", `package node

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"ringmain/controlplane/identity"
)

type recorder struct {
	mu   sync.Mutex
	file *os.File
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.file.Write(p)
}

type recordedWriter struct {
	http.ResponseWriter
	to io.Writer
}

func (w recordedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
func (w recordedWriter) Write(p []byte) (int, error) {
	if _, err := w.to.Write(p); err != nil {
		panic(err)
	}
	return w.ResponseWriter.Write(p)
}

type recordedBody struct {
	io.Reader
	io.Closer
}

// Each exchange has a file of its own: what streams at once does not mix.
func recorded(dir string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := identity.PeerID(*r.TLS)
		if err != nil {
			panic(err)
		}
		f, err := os.CreateTemp(dir, "recorded.call."+peer.Region+"."+peer.Role+".*")
		if err != nil {
			panic(err)
		}
		defer f.Close()
		to := &recorder{file: f}
		if _, err := io.WriteString(to, r.Method+" "+r.URL.RequestURI()+"\n"); err != nil {
			panic(err)
		}
		r.Body = recordedBody{io.TeeReader(r.Body, to), r.Body}
		next.ServeHTTP(recordedWriter{w, to}, r)
	})
}

var _ = filepath.Join
`},
	{"cmd/ringmain/internal/node/control.go", `serve(ctx, demux.For("h2"), inner, env.Logger)`, `serve(ctx, demux.For("h2"), recorded(filepath.Dir(cfg.DataDir), inner), env.Logger)`},
}

// The planted leak: the shard of a jurisdiction is given a member outside of
// it. The registry itself refuses a region that contradicts a pinned shard, so
// that check goes too.
var foreignMember = []edit{
	{"cmd/ringmain/internal/node/control.go", "controlplane.ShardPinned(own.Jurisdiction), Members: same}", `controlplane.ShardPinned(own.Jurisdiction), Members: map[bool][]string{true: all, false: same}[own.Jurisdiction == "eu"]}`},
	{"controlplane/registry/rules/accounts.go", "\t\tif pinned && pin != g.Jurisdiction &&", "\t\tif pinned && pin != g.Jurisdiction && pin != \"eu\" &&"},
}

// accounts are the kinds of records that a pinned shard holds.
var accounts = []registry.Kind{registry.KindOrg, registry.KindProject, registry.KindPolicy, registry.KindKey}

// scoped is what a run of pinned records left: what of them was found where.
type scoped struct {
	needles map[string]string // what it is -> text
	abroad  map[string]bool   // "place: what it is" in regions that may not hold it
	home    map[string]bool   // what was found in the jurisdiction's own regions, by kind of place
	places  map[string]int    // looked at abroad, by kind
}

func (s *scoped) look(abroad bool, kind, place string, b []byte) {
	if abroad {
		s.places[kind]++
	}
	for what, text := range s.needles {
		if !bytes.Contains(b, []byte(text)) {
			continue
		}
		if abroad {
			s.abroad[kind+": "+place+": "+what] = true
		} else {
			s.home[kind+": "+strings.Fields(what)[0]] = true
		}
	}
}

// scopeRun has orgs pinned to eu made, changed and revoked in a cluster of bin,
// then reads all that its regions hold and all that went over their internal
// listeners.
func scopeRun(t *testing.T, bin string, port int) *scoped {
	t.Helper()
	dir := t.TempDir()
	d, err := startDevAs([]string{bin}, dir, port, "--regions", "eu-fra:eu,eu-ams:eu,us-east:us", "--control", "1", "--data", "1")
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
	write := func(method, path, body string) answer {
		t.Helper()
		a := d.ask(t, method, d.Regions[0].Admin+"/admin/v1"+path, body, "authorization", "Bearer "+strings.TrimSpace(string(token)))
		if a.status/100 != 2 {
			t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
		}
		return a
	}
	s := &scoped{needles: map[string]string{}, abroad: map[string]bool{}, home: map[string]bool{}, places: map[string]int{}}
	const mark = "pinnedmark"
	s.needles["name"] = mark
	var whole string
	for i := range 3 {
		org := field(t, write("POST", "/orgs", fmt.Sprintf(`{"name":"%s-org-%d","plan":"enterprise","state":"verified","jurisdiction":"eu"}`, mark, i)).body, "id")
		write("POST", "/orgs/"+org+"/policies", `{"no_retention":true}`)
		project := field(t, write("POST", "/orgs/"+org+"/projects", fmt.Sprintf(`{"name":"%s-project-%d"}`, mark, i)).body, "id")
		for k := range 3 {
			made := write("POST", "/projects/"+project+"/keys", fmt.Sprintf(`{"name":"%s-key-%d"}`, mark, k)).body
			key := field(t, made, "id")
			switch k {
			case 0:
				whole = field(t, made, "key")
				s.needles["secret of "+key] = strings.Split(whole, "_")[4]
			case 1:
				write("POST", "/keys/"+key+"/rotate", "")
			case 2:
				write("POST", "/keys/"+key+"/revoke", "")
				s.needles["id of the revoked "+key] = key
				if i == 0 {
					write("DELETE", "/keys/"+key, "")
				}
			}
		}
	}
	// One that may be anywhere: the scan must see it abroad, or it sees nothing.
	const free = "freemark"
	freeOrg := field(t, write("POST", "/orgs", `{"name":"`+free+`-org","plan":"enterprise","state":"verified"}`).body, "id")
	freeProject := field(t, write("POST", "/orgs/"+freeOrg+"/projects", `{"name":"`+free+`-project"}`).body, "id")
	freeKey := field(t, write("POST", "/projects/"+freeProject+"/keys", `{"name":"`+free+`-key"}`).body, "key")

	// Served at home; refused, and not looked up anywhere, at the wrong entry.
	ask := func(region int, key string) (answer, error) {
		return d.tryAsk(t.Context(), d.client(false), "POST", d.node(t, region, "data").API+"/v1/chat/completions", chat(d.Model), "authorization", "Bearer "+key)
	}
	knows := func(region int, key, residency string) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			a, err := ask(region, key)
			if err == nil {
				err = asked(a, 200, residency)
			}
			return err
		})
	}
	knows(1, whole, "eu")
	if a, err := ask(2, whole); err != nil || a.status != http.StatusForbidden || a.header.Get("idc-error-code") != "wrong_jurisdiction" {
		t.Fatalf("at a wrong entry: %v %d %s", err, a.status, a.body)
	}
	// What came after has arrived abroad, too, where it may: also at the data node.
	knows(2, freeKey, "unpinned")
	stopped = true
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}

	// The home's state names every needle.
	state := d.state(t, 0)
	n := 0
	for _, kind := range accounts {
		for _, r := range state.List(kind, "", 0, func(r *registry.Record) bool { return r.Meta.Shard == controlplane.ShardPinned("eu") }) {
			s.needles["id of "+r.Meta.ID] = r.Meta.ID
			n++
			if r.Key != nil {
				s.needles["hash of "+r.Meta.ID] = string(r.Key.Hash)
				if len(r.Key.PrevHash) > 0 {
					s.needles["hash before of "+r.Meta.ID] = string(r.Key.PrevHash)
				}
			}
		}
	}
	if n != 3*(1+1+1+3)-1 {
		t.Fatalf("the home's state holds %d pinned records", n)
	}
	seesFree := map[string]bool{}
	see := func(abroad bool, kind, place string, b []byte) {
		s.look(abroad, kind, place, b)
		if abroad && bytes.Contains(b, []byte(free)) {
			seesFree[kind] = true
		}
	}
	for i, region := range d.Regions {
		abroad := !strings.HasPrefix(region.Name, "eu-")
		err := filepath.WalkDir(filepath.Join(d.dir, region.Name), func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			kind, place := "file", strings.TrimPrefix(path, d.dir+"/")
			switch name := e.Name(); {
			case name == "recorded.sealed":
				kind = "sealed"
			case strings.HasPrefix(name, "recorded.call."):
				kind = "call"
				// What this jurisdiction's regions say to another is abroad too.
				see(abroad || !strings.HasPrefix(name, "recorded.call.eu-"), kind, place, b)
				return nil
			}
			see(abroad, kind, place, b)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		d.lookInto(t, i, func(kind, place string, b []byte) { see(abroad, kind, place, b) })
	}
	for _, kind := range []string{"sealed", "call", "state", "last known good"} {
		if !seesFree[kind] {
			t.Errorf("the scan does not see the free org in us-east's %s: it proves nothing about that", kind)
		}
		for _, what := range []string{"id", "name", "hash"} {
			if !s.home[kind+": "+what] {
				t.Errorf("the scan does not see the %s of a pinned record at home in %s: it proves nothing about that", what, kind)
			}
		}
	}
	t.Logf("looked abroad into %v for %d needles", s.places, len(s.needles))
	return s
}

// state is a stopped region's registry, from the image of its control node.
func (d *devCluster) state(t *testing.T, region int) *ledger.State {
	t.Helper()
	n := d.node(t, region, "control")
	conf := readNodeYAML(t, n)
	holder, err := seal.OpenFileHolder(conf.SealKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	img, state, err := image.Open(image.Config{Path: filepath.Join(n.DataDir, "quorum", "image.db"), Cluster: conf.Cluster, Region: d.Regions[region].Name, Sealer: seal.New(holder)})
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil { // the state is in memory
		t.Fatal(err)
	}
	return state
}

// lookInto shows what a stopped region's nodes would load from their disks.
func (d *devCluster) lookInto(t *testing.T, region int, see func(kind, place string, b []byte)) {
	t.Helper()
	state := d.state(t, region)
	for _, info := range state.Shards() {
		see("state", fmt.Sprintf("shard %s of %s", info.Shard, d.Regions[region].Name), encoded(t, state, info.Shard))
	}
	n := d.node(t, region, "data")
	conf := readNodeYAML(t, n)
	holder, err := seal.OpenFileHolder(conf.SealKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	store, err := lkg.Open(lkg.Config{Dir: n.DataDir, Name: conf.Cluster + "/" + conf.Node, Sealer: seal.New(holder)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	if err := store.Past(func(f *feed.Frame) error { // all generations
		b, err := feed.EncodeFrame(f)
		see("last known good", n.Name, b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := store.Safety(func(e safety.Entry) error {
		if e.Revocation != nil {
			see("safety file", n.Name, []byte(e.Revocation.ID))
		}
		see("safety file", n.Name, e.Pin)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// encoded is all that the state holds of a shard.
func encoded(t *testing.T, state *ledger.State, shard controlplane.Shard) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, kind := range accounts {
		for _, r := range state.List(kind, "", 0, func(r *registry.Record) bool { return r.Meta.Shard == shard }) {
			raw, err := registry.EncodeRecord(r)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(raw)
		}
	}
	for _, r := range state.Revocations(shard) {
		b.WriteString(r.ID + "\n")
	}
	for q := range state.Quarantine(shard) {
		for _, c := range q.Entry.Changes {
			b.WriteString(c.ID + "\n")
			if c.Record != nil {
				b.WriteString(c.Record.Meta.ID + "\n")
			}
		}
	}
	return b.Bytes()
}

// A pinned org's records never reach a region outside of its jurisdiction: no
// file there holds an id, name or hash of them, sealed or not, and nothing that
// is sent to such a region's nodes does. The same scan finds a shard with a
// foreign member.
func TestPinnedRecordsStayInTheirJurisdiction(t *testing.T) {
	t.Run("as built", func(t *testing.T) {
		s := scopeRun(t, planted(t, recording...), 20440)
		for _, where := range slices.Sorted(maps.Keys(s.abroad)) {
			t.Errorf("outside of the jurisdiction: %s", where)
		}
	})
	t.Run("with a foreign member", func(t *testing.T) {
		s := scopeRun(t, planted(t, append(slices.Clone(recording), foreignMember...)...), 20440)
		kinds := map[string][]string{"file": {"id"}, "safety file": {"id"}} // an image's keys are ids; of a pin's record there is only what narrows
		for _, kind := range []string{"sealed", "call", "state", "last known good"} {
			kinds[kind] = []string{"id", "name", "hash"}
		}
		for kind, whats := range kinds {
			for _, what := range whats {
				if !slices.ContainsFunc(slices.Collect(maps.Keys(s.abroad)), func(where string) bool {
					return strings.HasPrefix(where, kind+": ") && strings.Contains(where, ": "+what)
				}) {
					t.Errorf("the planted leak of a record's %s was not found in a %s", what, kind)
				}
			}
		}
	})
}
