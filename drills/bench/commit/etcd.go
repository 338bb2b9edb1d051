package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

var errNotInstalled = errors.New("not installed")

// etcd is three etcd members. Writes go to the leader, by gRPC's wire format
// over a few connections: one Put each, as etcd's own benchmark does.
type etcd struct {
	members []*exec.Cmd
	leads   string // client address of the leader
	conns   []*http.Client
}

func startEtcd(ctx context.Context, o options) (_ *etcd, err error) {
	program, err := exec.LookPath(o.etcd)
	if err != nil {
		return nil, errNotInstalled
	}
	e := &etcd{}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	clients, peers := strings.Split(addresses(o.port+10, 3), ","), strings.Split(addresses(o.port+20, 3), ",")
	var initial []string
	for i, p := range peers {
		initial = append(initial, fmt.Sprintf("e%d=http://%s", i, p))
	}
	for i := range 3 {
		cmd := exec.Command(program, "--name", fmt.Sprintf("e%d", i), "--data-dir", filepath.Join(o.dir, fmt.Sprintf("etcd-%d", i)), //nolint:noctx // the operator names it; it is ended below
			"--listen-client-urls", "http://"+clients[i], "--advertise-client-urls", "http://"+clients[i],
			"--listen-peer-urls", "http://"+peers[i], "--initial-advertise-peer-urls", "http://"+peers[i],
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-token", "bench", "--log-level", "error")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		e.members = append(e.members, cmd)
	}
	plain := new(http.Protocols)
	plain.SetUnencryptedHTTP2(true)
	for range 8 {
		e.conns = append(e.conns, &http.Client{Transport: &http.Transport{Protocols: plain}})
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		for _, addr := range clients {
			if leads(ctx, addr) {
				e.leads = addr
				return e, nil
			}
		}
	}
	return nil, errors.New("no member leads")
}

// leads asks a member, by etcd's JSON gateway, whether it leads.
func leads(ctx context.Context, addr string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v3/maintenance/status", strings.NewReader("{}"))
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	var st struct {
		Header struct {
			ID string `json:"member_id"`
		} `json:"header"`
		Leader string `json:"leader"`
	}
	return json.NewDecoder(resp.Body).Decode(&st) == nil && st.Leader != "" && st.Leader == st.Header.ID
}

func (e *etcd) name() string { return "etcd" }

func (e *etcd) load(ctx context.Context, n int, window time.Duration) (sample, error) {
	value := bytes.Repeat([]byte("x"), valueBytes)
	return hammer(ctx, n, window, func(ctx context.Context, writer, i int) error {
		return e.put(ctx, e.conns[writer%len(e.conns)], fmt.Sprintf("org_any_%08d%08d", writer, i%1000), value)
	})
}

// put is etcdserverpb.KV/Put: PutRequest{key = 1, value = 2}, framed as gRPC
// frames messages (a zero byte and the length).
func (e *etcd) put(ctx context.Context, c *http.Client, key string, value []byte) error {
	msg := []byte{0, 0, 0, 0, 0, 1<<3 | 2}
	msg = binary.AppendUvarint(msg, uint64(len(key)))
	msg = append(append(msg, key...), 2<<3|2)
	msg = binary.AppendUvarint(msg, uint64(len(value)))
	msg = append(msg, value...)
	binary.BigEndian.PutUint32(msg[1:], uint32(len(msg)-5))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.leads+"/etcdserverpb.KV/Put", bytes.NewReader(msg))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if status := resp.Trailer.Get("Grpc-Status"); status != "0" {
		return fmt.Errorf("etcd answers grpc-status %q: %s%s", status, resp.Trailer.Get("Grpc-Message"), resp.Header.Get("Grpc-Message"))
	}
	return nil
}

func (e *etcd) close() (err error) {
	for _, c := range e.conns {
		c.CloseIdleConnections()
	}
	for _, m := range e.members {
		err = errors.Join(err, m.Process.Signal(syscall.SIGTERM))
	}
	for _, m := range e.members {
		_ = m.Wait() // it was told to end: its status says that
	}
	return err
}
