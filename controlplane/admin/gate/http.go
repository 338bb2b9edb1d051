package gate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
)

// exchange is what the layers around a handler know of one request.
type exchange struct {
	records.Request
	body []byte
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, ok := ctx.Value(exchangeKey{}).(*exchange)
	if !ok {
		return &exchange{} // a handler reached around prepare: nobody is the actor
	}
	return x
}

// requestIDs that callers may choose.
var requestID = regexp.MustCompile(`^[A-Za-z0-9_-]{8,64}$`)

// prepare gives the request an id, a deadline and a buffered body, and turns a
// panic into a 500.
func (g *Gate) prepare(next http.Handler) http.Handler {
	return http.HandlerFunc(func(inner http.ResponseWriter, r *http.Request) {
		started := g.cfg.Now()
		w := &statusWriter{ResponseWriter: inner}
		id := r.Header.Get(api.HeaderRequestID)
		if !requestID.MatchString(id) {
			id = registry.NewID("req", "", started, g.cfg.Random)
		}
		w.Header().Set(api.HeaderRequestID, id)
		w.Header().Set(api.HeaderAnswered, g.cfg.Region+"/"+g.cfg.Node)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		ctx, cancel := context.WithTimeout(r.Context(), AnswerIn)
		defer cancel()
		defer func() {
			if v := recover(); v != nil {
				g.cfg.Logger.Error("management handler panicked", "request_id", id, "method", r.Method, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
				if w.status == 0 {
					problem.Write(w, problem.Of(nil))
				}
			}
			g.metrics.requests.WithLabelValues(knownMethod(r.Method), strconv.Itoa(w.status)).Inc()
			g.metrics.seconds.Observe(g.cfg.Now().Sub(started).Seconds())
		}()
		body, err := readBody(w, r)
		if err != nil {
			problem.Write(w, err)
			return
		}
		x := &exchange{Request: records.Request{Entry: g.cfg.Region}, body: body}
		r = r.WithContext(records.With(context.WithValue(ctx, exchangeKey{}, x), &x.Request))
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		next.ServeHTTP(w, r)
	})
}

// knownMethod keeps strangers from inventing metric labels.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete:
		return method
	}
	return "other"
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, problem.New(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "", fmt.Sprintf("The body is larger than %d bytes: send less at once.", MaxBody))
	case err != nil:
		return nil, problem.New(http.StatusRequestTimeout, api.CodeTimeout, "", "The body did not arrive whole: send the request again.")
	}
	return body, nil
}

// authenticate lets bearers of a token in. It compares hashes in constant time
// with every token, so that its duration says nothing.
func (g *Gate) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, err := g.bearer(r)
		if err != nil {
			g.cfg.Audit.AccessRefused(r.RemoteAddr, token.Name, err.Error())
			problem.Write(w, problem.Unauthorized())
			return
		}
		heard := g.cfg.Store.Contact()
		if heard.Before(g.began) {
			heard = g.began // nothing is known of the time before
		}
		if age := g.cfg.Now().Sub(heard); age > g.cfg.TokenAge {
			g.cfg.Audit.AccessRefused(r.RemoteAddr, token.Name, "no leader heard for "+age.Round(time.Second).String())
			problem.Write(w, problem.New(http.StatusServiceUnavailable, api.CodeNotReady, "",
				"This node has heard no leader of its region for too long to know that the token is not revoked: ask another control node."))
			return
		}
		x := exchangeOf(r.Context())
		x.Actor, x.Token = token.Name, token.SHA256
		next.ServeHTTP(w, r)
	})
}

// bearer finds the token that r bears; with an error, too, if it is one of ours.
func (g *Gate) bearer(r *http.Request) (Token, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return Token{}, fmt.Errorf("%d authorization headers", len(values))
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return Token{}, errors.New("not a bearer token")
	}
	sum := sha256.Sum256([]byte(token))
	var found *Token
	for i := range g.cfg.Tokens {
		if subtle.ConstantTimeCompare(sum[:], g.cfg.Tokens[i].SHA256[:]) == 1 {
			found = &g.cfg.Tokens[i]
		}
	}
	switch {
	case found == nil:
		return Token{}, errors.New("unknown token")
	case !g.cfg.Now().Before(found.Expires):
		return *found, fmt.Errorf("token ended at %s", found.Expires.UTC().Format(time.RFC3339))
	}
	if g.cfg.Refused(found.SHA256) {
		return *found, errors.New("token is revoked")
	}
	return *found, nil
}

// routes is the mux, with problems instead of its plain-text 404 and 405.
func (g *Gate) routes() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := g.mux.Handler(r)
		if pattern != "" {
			g.mux.ServeHTTP(w, r)
			return
		}
		probe := &statusWriter{ResponseWriter: discard{w.Header()}}
		h.ServeHTTP(probe, r)
		w.Header().Del("Content-Type")
		if probe.status == http.StatusMethodNotAllowed {
			problem.Write(w, problem.New(http.StatusMethodNotAllowed, api.CodeMethod, "",
				r.Method+" is not possible here; possible: "+w.Header().Get("Allow")+"."))
			return
		}
		w.Header().Del("Location")
		problem.Write(w, notHere())
	})
}

func notHere() *api.Problem {
	return problem.New(http.StatusNotFound, api.CodeNotFound, "", "There is nothing at this path: /openapi.json lists what there is.")
}

// statusWriter remembers the status sent.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// discard keeps headers and drops the rest.
type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// unmarshal is json.Unmarshal, but strict where that is lenient: field names
// are compared exactly and may not come twice. (huma refuses unknown ones.)
func unmarshal(data []byte, v any) error {
	if err := checkNames(data); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// checkNames walks the JSON text; what it cannot read it leaves to the parser.
func checkNames(data []byte) error {
	type object struct {
		seen map[string]bool // nil = an array
		name bool            // the next token is a field's name
	}
	var stack []object
	for dec := json.NewDecoder(bytes.NewReader(data)); ; {
		token, err := dec.Token()
		if err != nil {
			return nil //nolint:nilerr // json.Unmarshal words it better
		}
		top := len(stack) - 1
		delim, isDelim := token.(json.Delim)
		if name, ok := token.(string); ok && top >= 0 && stack[top].name {
			switch {
			case name != strings.ToLower(name):
				return fmt.Errorf("unknown field %q: field names are lower case", name)
			case stack[top].seen[name]:
				return fmt.Errorf("field %q comes twice", name)
			}
			stack[top].seen[name], stack[top].name = true, false
			continue
		}
		if isDelim && (delim == '}' || delim == ']') {
			stack = stack[:top]
			continue
		}
		if top >= 0 && stack[top].seen != nil {
			stack[top].name = true // after this value
		}
		switch {
		case isDelim && len(stack) >= 32:
			return errors.New("is nested too deeply")
		case delim == '{':
			stack = append(stack, object{seen: map[string]bool{}, name: true})
		case delim == '[':
			stack = append(stack, object{})
		}
	}
}
