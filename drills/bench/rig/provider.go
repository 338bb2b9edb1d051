package rig

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The bytes every contender moves: about 0.5 KB up, 1.2 KB down, or EventsPerStream
// events of about 265 bytes.
const (
	EventsPerStream = 200
	pace            = 5 * time.Millisecond
	StampDigits     = 19
)

var (
	Prompt     = strings.Repeat("ring main feeds every consumer ", 14)
	AnswerBody = []byte(`{"id":"chatcmpl-bench","object":"chat.completion","created":1767225600,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"` +
		strings.Repeat("a cut anywhere leaves everyone supplied ", 24) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":75,"completion_tokens":160,"total_tokens":235}}`)
	EventHead = `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1767225600,"model":"bench","system_fingerprint":"`
	eventTail = `","service_tier":"default","choices":[{"index":0,"delta":{"content":" a cut anywhere leaves"},"logprobs":null,"finish_reason":null}],"usage":null}` + "\n\n"
	lastTail  = `","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}` + "\n\n"
	usageTail = `","choices":[],"usage":{"prompt_tokens":75,"completion_tokens":200,"total_tokens":275}}` + "\n\n" + "data: [DONE]\n\n"
)

// Request is the body that asks for one mode: plain, paced, burst, first or idle.
func Request(mode string) string { return RequestOf(mode, Prompt) }

// RequestOf is Request with a prompt of the caller's.
func RequestOf(mode, prompt string) string {
	stream := ""
	if mode != "plain" {
		stream = `"stream":true,"stream_options":{"include_usage":true},`
	}
	return `{"model":"bench",` + stream + `"user":"` + mode + `","messages":[{"role":"user","content":"` + prompt + `"}]}`
}

// provide answers at once, or streams as Request's mode says. The head of the
// body says the mode; a large body is read and dropped.
func provide(w http.ResponseWriter, r *http.Request) {
	head, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	if err != nil {
		return
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	_, rest, _ := strings.Cut(string(head), `"user":"`)
	mode, _, _ := strings.Cut(rest, `"`)
	if mode == "plain" {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(AnswerBody)))
		_, _ = w.Write(AnswerBody) // a client that left is no concern of a provider
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	n := EventsPerStream
	if mode == "first" || mode == "idle" {
		n = 1
	}
	var line []byte
	event := func(tail string) error {
		line = fmt.Appendf(line[:0], "%s%0*d%s", EventHead, StampDigits, time.Now().UnixNano(), tail)
		_, err := w.Write(line)
		return errors.Join(err, flush())
	}
	next := time.Now()
	for i := range n {
		if i > 0 && mode == "paced" {
			next = next.Add(pace)
			time.Sleep(time.Until(next))
		}
		if event(eventTail) != nil {
			return
		}
	}
	if mode == "idle" {
		<-r.Context().Done()
		return
	}
	_ = errors.Join(event(lastTail), event(usageTail)) // as above
}

const (
	certFile = "server.pem"
	keyFile  = "server.key"
	bothFile = "both.pem" // as HAProxy wants them
)

// certificate writes a self-signed loopback certificate that is its own root.
func certificate(dir string) (tls.Certificate, *x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ringmain bench"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for i := range 16 {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IPv4(127, 0, 0, byte(i+1)))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for name, text := range map[string][]byte{certFile: certPEM, keyFile: keyPEM, bothFile: append(certPEM, keyPEM...)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return tls.Certificate{}, nil, err
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return pair, roots, err
}

// ServeTLS serves h at addr until ctx ends and returns the address it has.
func ServeTLS(ctx context.Context, addr string, pair tls.Certificate, h2 bool, h http.Handler) (string, error) {
	l, err := net.Listen("tcp", addr) //nolint:noctx // binding does not wait
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(h2)
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	go func() { _ = srv.ServeTLS(l, "", "") }() // ends with ctx; a failure shows as failing requests
	return l.Addr().String(), nil
}
