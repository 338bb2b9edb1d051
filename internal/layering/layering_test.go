package layering

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "ringmain/"

// allowed says which of our own rooms each room may import, beside its own
// children. "x/..." means x and everything below it. A room that is not a key
// may import nothing of ours, but for assemblies (cmd, internal, e2e) and drills,
// which are held to it where they are keys. Each line that bends DESIGN.md's
// direction (cmd -> drills -> {dataplane, gossip} -> controlplane) gives its reason.
var allowed = map[string][]string{
	"controlplane": {},
	// strict is how whatever is kept or sent is encoded; what it says is for its rooms.
	"controlplane/strict": {},
	// ownership/check, the model, drives the rules.
	"controlplane/ownership": {"controlplane"},
	"controlplane/apikey":    {"controlplane"},
	"controlplane/seal":      {"controlplane"},
	"controlplane/identity":  {"controlplane", "controlplane/retry"},
	"controlplane/registry":  {"controlplane", "controlplane/ownership", "controlplane/strict"},
	// The registry's rooms, each on top of those before it: words, one shard's content, rules, state.
	"controlplane/registry/tree":    {},
	"controlplane/registry/content": {"controlplane", "controlplane/registry", "controlplane/registry/tree"},
	"controlplane/registry/rules":   {"controlplane", "controlplane/registry", "controlplane/registry/content"},
	"controlplane/registry/ledger":  {"controlplane", "controlplane/ownership", "controlplane/registry/..."},
	// pin is the room of a rule that spans two shards, above the state of each.
	"controlplane/pin":    {"controlplane", "controlplane/registry", "controlplane/registry/ledger"},
	"controlplane/quorum": {"controlplane", "controlplane/ownership", "controlplane/registry", "controlplane/registry/ledger", "controlplane/seal", "controlplane/retry"},
	// Parts of quorum: none knows another, but for the image's words on a disk.
	"controlplane/quorum/image":   {"controlplane", "controlplane/registry", "controlplane/registry/ledger", "controlplane/seal", "controlplane/strict"},
	"controlplane/quorum/machine": {"controlplane", "controlplane/registry", "controlplane/registry/ledger", "controlplane/quorum/image", "controlplane/retry"},
	"controlplane/quorum/members": {"controlplane", "controlplane/retry"},
	"controlplane/quorum/raftlog": {},
	"controlplane/quorum/store":   {"controlplane", "controlplane/seal", "controlplane/quorum/image", "controlplane/retry"},
	"controlplane/quorum/wire":    {},
	// backup has quorum make the directory that a restored region begins from.
	"controlplane/backup": {"controlplane", "controlplane/registry", "controlplane/registry/ledger", "controlplane/quorum", "controlplane/seal", "controlplane/strict"},
	// retry is how long to wait before asking again.
	"controlplane/retry": {},
	"controlplane/feed":  {"controlplane", "controlplane/ownership", "controlplane/registry", "controlplane/registry/ledger", "controlplane/identity", "controlplane/retry", "controlplane/strict"},
	// Neither end of the feed knows the other; they share its format and Watch.
	"controlplane/feed/age":      {"controlplane", "controlplane/registry", "controlplane/registry/ledger", "controlplane/identity", "controlplane/feed"},
	"controlplane/feed/push":     {"controlplane", "controlplane/registry", "controlplane/registry/ledger", "controlplane/identity", "controlplane/retry", "controlplane/feed"},
	"controlplane/feed/importer": {"controlplane", "controlplane/ownership", "controlplane/registry", "controlplane/registry/ledger", "controlplane/identity", "controlplane/feed"},
	// hub serves the history, and beside it what the board has.
	"controlplane/feed/hub": {"controlplane", "controlplane/registry", "controlplane/registry/ledger", "controlplane/identity", "controlplane/retry", "controlplane/feed", "controlplane/feed/push"},
	// roster checks by certificate who speaks for a region.
	"controlplane/roster": {"controlplane", "controlplane/identity"},
	// homes reads the feed's frames when it copies a whole shard.
	"controlplane/homes": {"controlplane", "controlplane/ownership", "controlplane/registry", "controlplane/registry/ledger", "controlplane/feed", "controlplane/identity", "controlplane/retry", "controlplane/strict"},
	// admin hands a new key's verdict to the feed, in the feed's own type.
	"controlplane/admin": {"controlplane", "controlplane/registry", "controlplane/registry/ledger", "controlplane/identity", "controlplane/apikey", "controlplane/feed", "controlplane/homes", "controlplane/pin"},

	"gossip/bulletin": {},
	"gossip":          {"gossip/bulletin", "controlplane"},

	"dataplane/link":    {"controlplane", "controlplane/feed", "controlplane/strict"},
	"dataplane/view":    {"controlplane", "controlplane/registry", "controlplane/feed"},
	"dataplane/dialect": {},
	// Three readers share the cursor; neither request nor stream knows the other.
	"dataplane/dialect/jsontext": {},
	"dataplane/dialect/request":  {"dataplane/dialect", "dataplane/dialect/jsontext"},
	"dataplane/dialect/stream":   {"dataplane/dialect", "dataplane/dialect/jsontext"},
	"dataplane/breaker":          {},
	"dataplane/sock":             {},
	"dataplane/h2":               {},
	// syntax is what both sides of HTTP/1.1 read alike: strictly.
	"dataplane/syntax":  {},
	"dataplane/h1":      {"dataplane/syntax"},
	"dataplane/edge":    {"dataplane/sock"},
	"dataplane/splice":  {"dataplane/dialect/..."},
	"dataplane/receipt": {"controlplane", "controlplane/identity", "controlplane/strict"},
	"dataplane/meter":   {"controlplane/strict"},
	"dataplane/policy":  {"controlplane", "controlplane/registry", "dataplane/view"},
	"dataplane/caller":  {"controlplane", "controlplane/registry", "controlplane/apikey", "controlplane/feed", "dataplane/view"},
	// route knows the classes of keys: test keys reach simulated upstreams only.
	"dataplane/route": {"controlplane", "controlplane/registry", "controlplane/apikey", "dataplane/view", "dataplane/policy", "dataplane/link"},
	"dataplane/relay": {"controlplane", "controlplane/registry", "controlplane/identity", "dataplane/dialect/...", "dataplane/breaker", "dataplane/sock", "dataplane/syntax"},
	// keeper finds one receipt in the batches it keeps.
	"dataplane/keeper": {"controlplane", "controlplane/registry", "controlplane/seal", "controlplane/identity", "controlplane/feed", "controlplane/apikey", "dataplane/link/...", "dataplane/view", "dataplane/receipt/proof"},
	// disk is how the keeper's rooms write; the safety file knows no generation.
	"dataplane/keeper/disk":       {"controlplane", "controlplane/seal"},
	"dataplane/keeper/lkg/safety": {"controlplane", "controlplane/feed", "controlplane/registry", "controlplane/seal", "dataplane/keeper/disk"},
	// documents publishes which fields the records and receipts have.
	"dataplane/documents": {"controlplane", "controlplane/registry", "dataplane/link", "dataplane/meter", "dataplane/receipt"},
	// body only says, in the dialects' own words, why it does not read one.
	"dataplane/body": {"dataplane/dialect"},
	// walk has whatever one attempt takes, and what decides about the next.
	"dataplane/walk": {"controlplane/registry", "dataplane/admission", "dataplane/body", "dataplane/breaker", "dataplane/dialect/...", "dataplane/link", "dataplane/policy", "dataplane/receipt", "dataplane/relay", "dataplane/route", "dataplane/view"},
	// exchange strings together all that one request needs; the worker, all that the process does.
	"dataplane/exchange": {"controlplane/...", "dataplane/..."},
	"dataplane":          {"controlplane/...", "dataplane/..."},

	// Parts of a node and of the development cluster that know no other, and no room that they wire.
	"cmd/ringmain/internal/dev/door":        {},
	"cmd/ringmain/internal/node/certs":      {"cmd/ringmain/internal/config", "controlplane/identity"},
	"cmd/ringmain/internal/node/expelled":   {"controlplane", "controlplane/identity", "controlplane/registry", "controlplane/registry/ledger"},
	"cmd/ringmain/internal/node/neighbours": {"cmd/ringmain/internal/config", "controlplane", "controlplane/admin/api", "controlplane/roster", "gossip", "gossip/bulletin", "dataplane/keeper/trial"},

	// Who makes a history has no part in the verdict: the judge knows words of the API, and no cluster.
	"drills/history":        {"controlplane/admin/api"},
	"drills/history/client": {"controlplane/admin/api", "drills/cluster", "drills/history"},
}

type pkg struct {
	ImportPath string
	Dir        string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "ringmain/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

// rules are the room's own, or, for a part of a room, the room's and its parts.
func rules(room string) []string {
	if r, ok := allowed[room]; ok {
		return r
	}
	if i := strings.LastIndexByte(room, '/'); strings.Count(room, "/") >= 2 {
		parent := room[:i]
		return append(slices.Clone(allowed[parent]), parent+"/...")
	}
	return nil
}

func permits(rules []string, imported string) bool {
	for _, r := range rules {
		if r == imported {
			return true
		}
		if base, ok := strings.CutSuffix(r, "/..."); ok && (imported == base || strings.HasPrefix(imported, base+"/")) {
			return true
		}
	}
	return false
}

func TestWhoMayImportWhom(t *testing.T) {
	for _, p := range packages(t) {
		room := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			own, ok := strings.CutPrefix(imp, module)
			if !ok || strings.HasPrefix(own, room+"/") {
				continue
			}
			bounds, bound := allowed[room]
			switch {
			case bound && !permits(bounds, own):
				t.Errorf("%s imports %s: not in the table of layering_test.go", room, own)
			case strings.HasPrefix(room, "cmd/"), strings.HasPrefix(room, "internal/"), strings.HasPrefix(room, "e2e"):
				// Assemblies see everything but drills, whose simulated provider `ringmain dev` starts.
				if strings.HasPrefix(own, "drills") && room != "cmd/drills" && own != "drills/simmodel" {
					t.Errorf("%s imports %s: production never imports drills", room, own)
				}
			case strings.HasPrefix(room, "drills"):
				if strings.HasPrefix(own, "cmd/") {
					t.Errorf("%s imports %s: drills see a cluster from outside", room, own)
				}
			case !bound:
				if !permits(rules(room), own) {
					t.Errorf("%s imports %s: not in the table of layering_test.go", room, own)
				}
			}
		}
	}
}

func TestEveryPackageSaysOnceWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		var with []string
		for _, f := range p.GoFiles {
			tree, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if tree.Doc != nil {
				with = append(with, f)
			}
		}
		slices.Sort(with)
		if len(p.GoFiles) > 0 && len(with) != 1 {
			t.Errorf("%s: %d files have a package comment (%s), want exactly one", p.ImportPath, len(with), strings.Join(with, ", "))
		}
	}
}
