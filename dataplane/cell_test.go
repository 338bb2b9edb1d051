package dataplane_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/bcrypt"

	"ringmain/controlplane"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/link"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/view"
	"ringmain/drills/simmodel"
	"ringmain/internal/testkit/logkit"
)

const cluster = "test"

// ring is a cluster of one worker a region, over real sockets, without a
// control plane: the test plays it.
type ring struct {
	t     testing.TB
	ca    *identity.CA
	mu    sync.Mutex
	cells map[string]*cell
	state []*registry.Record // what every region holds
	codes *codeBook
	// discard: records are not kept; a benchmark would pay for reading them.
	discard bool
	// down are the regions that gossip publishes as down.
	down map[string]bool
	// pools of every cell; nil = the usual ones.
	pools []string
	// askReceipt plays every keeper's memory of receipts; nil = there is none.
	askReceipt func(ctx context.Context, requestID string) ([]byte, error)
	// ttl of the certificates that cells start with; 0 = an hour.
	ttl time.Duration
	// documents that the operator supplies.
	documents []link.Document
	// receiptHash is the only hash of bodies in receipts; empty = as it suits.
	receiptHash string
	// upstreamCA is of providers over TLS.
	upstreamCA []byte
	// standardHTTP1, standardHTTP2: clients are served by net/http's HTTP/1.1, or HTTP/2.
	standardHTTP1, standardHTTP2 bool
	// accepting is put before the listeners for clients; nil = nothing is.
	accepting func(net.Listener) net.Listener
}

// cell is one region's worker.
type cell struct {
	ring         *ring
	region, node string
	pools        []string
	jurisdiction string
	store        *view.Store
	worker       *dataplane.Worker
	api, peer    string
	peerLine     line
	registry     *prometheus.Registry
	log          *logkit.Buffer

	mu       sync.Mutex
	records  []*meter.Record
	emitErr  error
	verdicts []feed.Verdict

	confinement atomic.Pointer[link.Confinement] // nil = nothing holds
	full        atomic.Bool                      // the keeper has no room for records
	reloads     atomic.Int32
	panics      atomic.Bool // the next record is met with a panic
}

// allHolds is a worker's confinement with every control in force.
var allHolds = link.Confinement{Landlock: 7, NoFileWrite: true, NoDump: true, NoSwap: true}

func (c *cell) confined() link.Confinement {
	if p := c.confinement.Load(); p != nil {
		return *p
	}
	return link.Confinement{}
}

// codeBook notes every error code that a test saw on the wire.
type codeBook struct {
	mu   sync.Mutex
	seen map[dialect.Code]bool
}

var seenCodes = &codeBook{seen: map[dialect.Code]bool{}}

func newRing(t testing.TB) *ring {
	t.Helper()
	ca, err := identity.CreateCA(t.TempDir(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	return &ring{t: t, ca: ca, cells: map[string]*cell{}, codes: seenCodes}
}

func meta(id string, shard controlplane.Shard) registry.Meta {
	return registry.Meta{ID: id, Shard: shard, Revision: 1, Created: time.Now().UnixMilli(), Updated: time.Now().UnixMilli()}
}

// org adds an org with one project, and gives a key of it.
func (r *ring) org(name, jurisdiction, state, class string, change ...func(*registry.Org, *registry.Project, *registry.Key)) (key string, parsed apikey.Parsed) {
	r.t.Helper()
	shard := controlplane.ShardAny("us-east")
	if jurisdiction != controlplane.JurisdictionAny {
		shard = controlplane.ShardPinned(jurisdiction)
	}
	whole, parsed, err := apikey.New(class, jurisdiction, time.Now().Add(-time.Hour), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	o := &registry.Org{Name: name, Plan: "scale", State: state, Jurisdiction: jurisdiction}
	p := &registry.Project{Org: "org_" + name, Name: name}
	k := &registry.Key{Project: "prj_" + name, Class: class, Hint: parsed.Hint()}
	for _, c := range change {
		c(o, p, k)
	}
	if k.Hash == nil {
		if k.Hash, err = cheapHash(whole); err != nil {
			r.t.Fatal(err)
		}
	}
	r.state = append(r.state,
		&registry.Record{Kind: registry.KindOrg, Meta: meta("org_"+name, shard), Org: o},
		&registry.Record{Kind: registry.KindProject, Meta: meta("prj_"+name, shard), Project: p},
		&registry.Record{Kind: registry.KindKey, Meta: meta(parsed.RecordID(), shard), Key: k})
	return whole.Reveal(), parsed
}

// cheapHash is apikey.Hash at bcrypt's least cost, for tests under the race
// detector. Matching takes the cost from the hash.
func cheapHash(whole controlplane.Secret) ([]byte, error) {
	sum := sha256.Sum256([]byte(whole.Reveal()))
	return bcrypt.GenerateFromPassword([]byte(base64.StdEncoding.EncodeToString(sum[:])), bcrypt.MinCost)
}

func (r *ring) add(rec *registry.Record) { r.state = append(r.state, rec) }

func (r *ring) policy(id string, p *registry.Policy) {
	r.add(&registry.Record{Kind: registry.KindPolicy, Meta: meta(id, controlplane.ShardAny("us-east")), Policy: p})
}

func (r *ring) upstream(name, region, d, url string, change ...func(*registry.Upstream)) {
	u := &registry.Upstream{Name: name, Provider: d, Region: region, Dialect: d, BaseURL: url, Auth: "bearer", Credential: []byte("provider-secret")}
	for _, c := range change {
		c(u)
	}
	r.add(&registry.Record{Kind: registry.KindUpstream, Meta: meta("ups_"+name, controlplane.ShardGlobal), Upstream: u})
}

// route adds a model. Only the upstreams that never answer get short timeouts:
// the machine that runs this may be slow.
func (r *ring) route(model string, targets ...registry.Target) {
	t := registry.Timeouts{ConnectMS: 5000, FirstByteMS: 20_000, IdleMS: 20_000, TotalMS: 60_000}
	if model == simmodel.FaultSilence {
		t.FirstByteMS = 300
	}
	if model == simmodel.FaultStall {
		t.IdleMS = 300
	}
	r.add(&registry.Record{Kind: registry.KindRoute, Meta: meta("rte_"+model, controlplane.ShardGlobal),
		Route: &registry.Route{Model: model, Targets: targets, Timeouts: t}})
}

// start opens the worker of a region.
func (r *ring) start(region, jurisdiction string, tunables ...dataplane.Tunables) *cell {
	r.t.Helper()
	return r.startWith(region, jurisdiction, 0, tunables...)
}

// startWith also sets how many requests at once the worker takes.
func (r *ring) startWith(region, jurisdiction string, capacity uint32, tunables ...dataplane.Tunables) *cell {
	r.t.Helper()
	return r.startNode(region, jurisdiction, region+"-d1", r.pools, capacity, tunables...)
}

// startNode names the node and its pools, too.
func (r *ring) startNode(region, jurisdiction, name string, pools []string, capacity uint32, tunables ...dataplane.Tunables) *cell {
	r.t.Helper()
	c := &cell{ring: r, region: region, node: name, pools: pools, jurisdiction: jurisdiction, store: view.New(view.Config{}),
		registry: prometheus.NewRegistry(), log: &logkit.Buffer{}}
	node, server := c.issue(cmp.Or(r.ttl, time.Hour))
	api, peer := listen(r.t), listen(r.t)
	c.api, c.peer = api.Addr().String(), peer.Addr().String()
	c.peerLine.Listener = peer
	if r.accepting != nil {
		api = r.accepting(api)
	}
	tune := dataplane.Tunables{ProbeEvery: 50 * time.Millisecond, DrainGrace: 50 * time.Millisecond}
	if len(tunables) > 0 {
		tune = tunables[0]
	}
	if tune.Overload == 0 { // how busy this machine is shall decide nothing
		tune.Overload = time.Hour
	}
	var err error
	c.worker, err = dataplane.Open(context.Background(), dataplane.Config{
		API: api, Peer: &c.peerLine, Store: c.store, Tunables: tune,
		Setup: link.Setup{
			Cluster: cluster, Region: region, Jurisdiction: jurisdiction, Node: c.node,
			APICert: server.Chain, APIKey: server.Key, NodeCert: node.Chain, NodeKey: node.Key, Roots: node.Roots,
			VerdictSecret: []byte("a verdict secret of the test cluster"), Capacity: capacity, Pools: pools, Documents: r.documents, ReceiptHash: r.receiptHash, UpstreamCA: r.upstreamCA, StandardHTTP1: r.standardHTTP1, StandardHTTP2: r.standardHTTP2,
		},
		Room: func() bool { return !c.full.Load() }, Confined: c.confined,
		Peers: c.peers, Emit: c.emit, Verdict: c.verdict, AskReceipt: r.askReceipt,
		Logger:     slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registerer: c.registry,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	if name == region+"-d1" {
		r.cells[region] = c
	} else {
		r.cells[name] = c
	}
	r.mu.Unlock()
	r.t.Cleanup(c.close)
	return c
}

// issue makes certificates for the node and for its API.
func (c *cell) issue(ttl time.Duration) (node, server *identity.Issued) {
	c.ring.t.Helper()
	loop := []net.IP{net.IPv4(127, 0, 0, 1)}
	node, err := c.ring.ca.IssueNode(identity.ID{Region: c.region, Role: identity.RoleData, Node: c.node}, loop, ttl)
	if err != nil {
		c.ring.t.Fatal(err)
	}
	server, err = c.ring.ca.IssueServer([]string{"localhost"}, loop, ttl)
	if err != nil {
		c.ring.t.Fatal(err)
	}
	return node, server
}

// lost is close for a worker whose listener failed.
func (c *cell) lost() {
	_ = c.worker.Close()
	c.worker = nil
}

func (c *cell) close() {
	if c.worker == nil {
		return
	}
	if err := c.worker.Close(); err != nil {
		c.ring.t.Errorf("%s: Close: %v", c.region, err)
	}
	c.worker = nil
}

// line is a listener whose connections can be lost.
type line struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (l *line) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns = append(l.conns, nc)
	}
	return nc, err
}

// lose ends all of it without a word.
func (l *line) lose() {
	_ = l.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, nc := range l.conns {
		_ = nc.Close()
	}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// load gives every cell all of the state, and marks it as loaded.
func (r *ring) load() {
	r.t.Helper()
	for _, c := range r.cells {
		r.add(&registry.Record{Kind: registry.KindRegion, Meta: meta("reg_"+c.region, controlplane.ShardGlobal),
			Region: &registry.Region{Name: c.region, Jurisdiction: c.jurisdiction, Endpoint: "https://" + c.api, State: "active"}})
	}
	for _, c := range r.cells {
		c.load(r.state)
	}
}

func (c *cell) load(state []*registry.Record) {
	t := c.ring.t
	t.Helper()
	shards := map[controlplane.Shard]bool{}
	position := controlplane.Position{}
	for _, rec := range state {
		shards[rec.Meta.Shard] = true
	}
	apply := func(f *feed.Frame) {
		if err := c.store.Apply(f); err != nil {
			t.Fatal(err)
		}
	}
	for shard := range shards {
		point := controlplane.Point{Epoch: controlplane.Epoch{Counter: 1, Region: "us-east"}, Seq: uint64(len(state))}
		apply(&feed.Frame{Type: feed.FrameReset, Shard: shard, Home: "us-east"})
		for _, rec := range state {
			if rec.Meta.Shard != shard {
				continue
			}
			b, err := registry.EncodeRecord(rec)
			if err != nil {
				t.Fatal(err)
			}
			apply(&feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: b})
		}
		apply(&feed.Frame{Type: feed.FrameEnd, Shard: shard, Point: point})
		position[shard] = point
	}
	c.store.SetLoaded(false)
	apply(&feed.Frame{Type: feed.FrameHeartbeat, Position: position, At: time.Now().UnixMilli()})
}

func (c *cell) peers() link.Peers {
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	var p link.Peers
	for _, o := range c.ring.cells {
		if o != c {
			p.Nodes = append(p.Nodes, link.Peer{Region: o.region, Node: o.node, Addr: o.peer, Alive: true, Ready: true, Capacity: 100, Pools: o.pools})
			p.Regions = append(p.Regions, link.PeerRegion{Region: o.region, Up: !c.ring.down[o.region]})
		}
	}
	return p
}

func (c *cell) emit(b []byte) error {
	if c.ring.discard {
		return nil
	}
	rec, err := meter.Decode(b)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.panics.CompareAndSwap(true, false) {
		panic("a bug")
	}
	if c.emitErr != nil {
		return c.emitErr
	}
	c.records = append(c.records, rec)
	return nil
}

func (c *cell) verdict(v feed.Verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verdicts = append(c.verdicts, v)
}

// record waits for the record of a request.
func (c *cell) record(id string) *meter.Record {
	c.ring.t.Helper()
	var found *meter.Record
	poll(c.ring.t, "the record of "+id+" in "+c.region, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := 0
		for _, r := range c.records {
			if r.RequestID == id {
				found = r
				n++
			}
		}
		if n > 1 {
			c.ring.t.Fatalf("%d records of %s in %s", n, id, c.region)
		}
		return n == 1
	})
	return found
}

func poll(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("timed out: %s", what)
}

// client speaks to a cell over HTTP/2 or HTTP/1.1.
func (c *cell) client(http2 bool) *http.Client {
	c.ring.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.ring.ca.ServerRoots())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: http2}
	if !http2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	c.ring.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
	broken error // the body ended before it should
	proto  int
}

type call struct {
	path, key, body string
	header          map[string]string
	method          string
}

const chat, messages = "/v1/chat/completions", "/v1/messages"

func ask(model string, stream bool, more ...string) string {
	s := `{"model":"` + model + `","messages":[{"role":"user","content":"tell me about foxes"}],"max_tokens":40`
	if stream {
		s += `,"stream":true`
	}
	return s + strings.Join(more, "") + "}"
}

func (c *cell) do(cl *http.Client, in call) *reply {
	c.ring.t.Helper()
	r, err := c.try(context.Background(), cl, in)
	if err != nil {
		c.ring.t.Fatal(err)
	}
	return r
}

func (c *cell) try(ctx context.Context, cl *http.Client, in call) (*reply, error) {
	resp, err := c.send(ctx, cl, in)
	if err != nil {
		return nil, err
	}
	return c.receive(resp), nil
}

// send returns with the answer's head.
func (c *cell) send(ctx context.Context, cl *http.Client, in call) (*http.Response, error) {
	method := in.method
	if method == "" {
		method = http.MethodPost
		if in.body == "" {
			method = http.MethodGet
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.api+in.path, strings.NewReader(in.body))
	if err != nil {
		return nil, err
	}
	if in.key != "" {
		req.Header.Set("authorization", "Bearer "+in.key)
	}
	for k, v := range in.header {
		for _, one := range strings.Split(v, "|") {
			req.Header.Add(k, one)
		}
	}
	return cl.Do(req)
}

// receive reads the rest of the answer.
func (c *cell) receive(resp *http.Response) *reply {
	defer func() { _ = resp.Body.Close() }()
	b, broken := io.ReadAll(resp.Body)
	r := &reply{status: resp.StatusCode, header: resp.Header, body: string(b), broken: broken, proto: resp.ProtoMajor}
	if code := dialect.Code(resp.Header.Get("idc-error-code")); code != "" {
		c.ring.codes.mu.Lock()
		c.ring.codes.seen[code] = true
		c.ring.codes.mu.Unlock()
	}
	return r
}

// wantError checks everything that an error answer must carry.
func (r *reply) wantError(t testing.TB, d dialect.Dialect, code dialect.Code) {
	t.Helper()
	if r.status != code.Status() || r.header.Get("idc-error-code") != string(code) {
		t.Fatalf("status %d code %q, want %d %s: %s", r.status, r.header.Get("idc-error-code"), code.Status(), code, r.body)
	}
	if got, want := r.header.Get("x-should-retry"), map[bool]string{true: "true", false: "false"}[code.Retry()]; got != want {
		t.Errorf("x-should-retry %q, want %q", got, want)
	}
	if code.Retry() != (r.header.Get("retry-after") != "") {
		t.Errorf("retry-after %q with %s", r.header.Get("retry-after"), code)
	}
	var body struct {
		Type      string
		RequestID string `json:"request_id"`
		Error     struct{ Type, Code, Message string }
	}
	if err := json.Unmarshal([]byte(r.body), &body); err != nil || body.Error.Message == "" {
		t.Fatalf("body %s: %v", r.body, err)
	}
	if body.Error.Type != code.Type(d) {
		t.Errorf("type %q, want %q", body.Error.Type, code.Type(d))
	}
	if d == dialect.OpenAI && body.Error.Code != string(code) || d == dialect.Anthropic && (body.Type != "error" || body.RequestID != r.header.Get("idc-request-id")) {
		t.Errorf("body %s", r.body)
	}
	r.wantHeaders(t)
}

// wantHeaders checks what every answer carries.
func (r *reply) wantHeaders(t testing.TB) {
	t.Helper()
	for _, name := range []string{"idc-request-id", "x-request-id", "request-id", "idc-entry-region", "idc-region", "idc-replica", "idc-pool", "idc-route", "idc-retention", "idc-attempts"} {
		if len(r.header.Values(name)) != 1 || r.header.Get(name) == "" {
			t.Errorf("header %s: %q", name, r.header.Values(name))
		}
	}
	size := 0
	for name, values := range r.header {
		for _, v := range values {
			size += len(name) + len(v) + 4
		}
		if strings.HasPrefix(name, "Ringmain-") {
			t.Errorf("internal header %s reached the client", name)
		}
	}
	if size > 3<<10 {
		t.Errorf("%d bytes of headers", size)
	}
}

// provider runs a scripted upstream, on TLS with HTTP/2 if asked.
func provider(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// events cuts a stream's body into its events.
func events(body string) []string {
	all := strings.SplitAfter(body, "\n\n")
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}

var errNoKeeper = errors.New("the keeper is away")
