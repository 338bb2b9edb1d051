// Package receipt is `ringmain receipt`: what a customer checks receipts with,
// offline and without an account.
package receipt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"ringmain/dataplane/receipt/proof"
)

// usageError is a mistake in how the command was called.
type usageError struct{ error }

// IsUsage reports whether err is a mistake in how the command was called.
func IsUsage(err error) bool {
	var u usageError
	return errors.As(err, &u)
}

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Env is where the command reads and writes.
type Env struct {
	Stdin  io.Reader
	Stdout io.Writer
}

// maxReceipt bounds a receipt, maxBody a body, in bytes.
const (
	maxReceipt = 1 << 20
	maxBody    = 1 << 30
)

// Command gives `ringmain receipt`.
func Command(env Env) *cobra.Command {
	c := &cobra.Command{
		Use: "receipt", Short: "check what a node signed about an answer",
		Args: cobra.ArbitraryArgs, // so that RunE can word the error
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q for %q; there is: verify", args[0], "ringmain receipt")
			}
			return usagef("%q needs one of: verify", "ringmain receipt")
		},
	}
	c.AddCommand(verifyCommand(env))
	return c
}

type options struct{ ca, jwks, request, response, output string }

func verifyCommand(env Env) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "verify a receipt offline: any changed byte is refused",
		Long: `Verify a receipt offline: any changed byte is refused.

FILE is what GET /v1/receipts/{request-id} answered, byte for byte, or the value
of an idc-receipt header that was asked for inline. For one file, a body too,
"-" reads standard input.

Trust begins at --ca, the cluster's root certificates, or else at --jwks, a
/.well-known/jwks.json from a host that you trust. Node certificates live for a
day: they are verified as of the time the receipt states, not as of now. An
inline receipt carries no certificates, so it needs --jwks of the node that
answered.

Bodies are stated by a salted SHA-256, large ones by a salted BLAKE3. For each,
a command is printed that checks it with standard tools: sha256sum, b3sum. Of an
answer that was broken off, because its client left or took nothing for too
long, the receipt states what had been sent by then: that much of the file given
is checked.

A WARNING says that retention is stated as zero, and that a worker which saw the
request says it was not confined: the receipt is genuine, the promise was broken.

A receipt proves who signed it, not what software ran: nothing attests that yet.
Exit status: 0 verified, 1 refused or unreadable, 2 called wrongly.`,
		Example: `  ringmain receipt verify receipt.json --jwks jwks.json
  ringmain receipt verify receipt.json --ca roots.pem --request sent.json --response received.json
  ringmain receipt verify - --jwks jwks.json -o json < inline.jws`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("receipt verify takes one file, not %d", len(args))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return verify(env, args[0], o) },
	}
	f := c.Flags()
	f.StringVar(&o.jwks, "jwks", "", "key set from /.well-known/jwks.json; with --ca it only supplies keys")
	f.StringVar(&o.ca, "ca", "", "PEM file of the cluster's root certificates")
	f.StringVar(&o.request, "request", "", "file with the request body that was sent")
	f.StringVar(&o.response, "response", "", "file with the response body that was received")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	return c
}

func verify(env Env, file string, o options) error {
	if o.output != "table" && o.output != "json" {
		return usagef("--output %q: use table or json", o.output)
	}
	piped := 0
	for _, f := range []string{file, o.request, o.response} {
		if f == "-" {
			piped++
		}
	}
	if piped > 1 {
		return usagef("receipt verify: standard input can be read once: name a file for the others")
	}
	anchors, err := o.anchors()
	if err != nil {
		return err
	}
	document, err := read(env, file, maxReceipt)
	if err != nil {
		return err
	}
	var bodies proof.Bodies
	if bodies.Request, err = body(env, o.request); err != nil {
		return err
	}
	if bodies.Response, err = body(env, o.response); err != nil {
		return err
	}
	v := proof.Verify(document, anchors, bodies)
	if o.output == "json" {
		err = printJSON(env.Stdout, v)
	} else if v.Verified {
		err = printWords(env.Stdout, v)
	}
	if err != nil {
		return fmt.Errorf("receipt verify: %w", err)
	}
	if !v.Verified {
		hint := ""
		if o.ca != "" && strings.Contains(v.Reason, "unknown authority") {
			hint = " (--ca takes the roots of the cluster's nodes, roots.pem, not the authority of its HTTPS certificates)"
		}
		return fmt.Errorf("receipt verify: %s: REFUSED: %s%s", file, clean(v.Reason), hint)
	}
	return nil
}

// anchors are whom the flags say to trust.
func (o options) anchors() (*proof.Anchors, error) {
	var keySet []byte
	var err error
	if o.jwks != "" {
		if keySet, err = os.ReadFile(o.jwks); err != nil {
			return nil, fmt.Errorf("receipt verify: --jwks: %w", err)
		}
	}
	if o.ca == "" {
		if o.jwks == "" {
			return nil, usagef("receipt verify needs somebody to trust: --ca with the cluster's roots, or --jwks with /.well-known/jwks.json from a host that you trust")
		}
		a, err := proof.AnchorsOfKeySet(keySet)
		if err != nil {
			return nil, fmt.Errorf("receipt verify: --jwks %s: %w", o.jwks, err)
		}
		return a, nil
	}
	roots, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, fmt.Errorf("receipt verify: --ca: %w", err)
	}
	a, err := proof.AnchorsOfPEM(roots)
	if err != nil {
		return nil, fmt.Errorf("receipt verify: --ca %s: %w", o.ca, err)
	}
	if keySet != nil {
		if err := a.Learn(keySet); err != nil {
			return nil, fmt.Errorf("receipt verify: --jwks %s: %w", o.jwks, err)
		}
	}
	return a, nil
}

func read(env Env, file string, most int64) ([]byte, error) {
	r := env.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("receipt verify: %w", err)
		}
		defer func() { _ = f.Close() }() // opened for reading
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s is larger than %d bytes: is it the right file?", file, most)
	}
	if err != nil {
		return nil, fmt.Errorf("receipt verify: %w", err)
	}
	return b, nil
}

// body reads a body; an empty file is a body, no file is none.
func body(env Env, file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	b, err := read(env, file, maxBody)
	if b == nil && err == nil {
		b = []byte{}
	}
	return b, err
}

func printJSON(w io.Writer, v *proof.Verdict) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err //nolint:wrapcheck // verify wraps
	}
	_, err = fmt.Fprintln(w, string(b))
	return err //nolint:wrapcheck // verify wraps
}

// printWords says what was verified, what was not, and what the facts are.
func printWords(out io.Writer, v *proof.Verdict) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0) // keeps its first error for Flush
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	f := v.Facts
	line("VERIFIED: %s", clean(f.RequestID))
	for _, s := range v.Warnings {
		line("\nWARNING: %s", clean(s))
	}
	line("\nchecked:")
	for _, s := range v.Checked {
		line("  + %s", clean(s))
	}
	line("\nnot checked:")
	for _, s := range v.NotChecked {
		line("  - %s", clean(s))
	}
	if len(v.ByHand) > 0 {
		line("\nthe bodies by hand, in a directory with the files REQUEST and RESPONSE:")
	}
	for _, h := range v.ByHand {
		line("  $ %s\n  %s", clean(h.Command), clean(h.Prints))
	}
	line("\nwhat the node states:")
	fact := func(name, value string) {
		if value != "" {
			line("  %s\t%s", name, clean(value))
		}
	}
	fact("arrived", time.UnixMilli(f.At).UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	fact("endpoint", f.Endpoint)
	fact("status", strconv.Itoa(f.Status))
	fact("answer", answer(f))
	fact("model", f.Model)
	fact("served as", f.Served)
	fact("org, project, key", strings.Join([]string{f.Org, f.Project, f.Key}, ", "))
	fact("entered at", f.EntryRegion+"/"+f.EntryNode)
	fact("executed at", f.Region+"/"+f.Node)
	fact("pool", f.Pool)
	fact("retention", f.Retention)
	fact("residency", f.Residency)
	for i, a := range f.Attempts {
		where := strings.Trim(a.Region+"/"+a.Node, "/")
		if a.Upstream != "" {
			where += " > " + a.Upstream
		}
		attempt := "attempt " + strconv.Itoa(i+1)
		fact(attempt, where+": "+a.Outcome)
		if a.Confinement != nil {
			fact(attempt+", confinement", a.Confinement.Words())
		}
	}
	for _, h := range v.ByHand {
		fact(h.Body+" body", "salted "+string(h.Algorithm)+" "+h.Prints)
	}
	fact("confinement at entry", f.Confinement.Words())
	return w.Flush() //nolint:wrapcheck // verify wraps
}

// ends says in words how an answer ended.
var ends = map[string]string{
	"complete":    "complete: the node sent all of it",
	"truncated":   "truncated: it began, and ended with an error",
	"client_gone": "client_gone: the client left, or took nothing for too long",
	"error":       "error: an error instead of an answer",
}

// answer says how the answer ended.
func answer(f *proof.Facts) string {
	s := ends[f.Ended]
	if s == "" {
		s = f.Ended
	}
	if f.Written > 0 {
		s += fmt.Sprintf("; %d bytes had been sent", f.Written)
	}
	if f.Streamed {
		s += "; asked for as a stream"
	}
	if f.Refused {
		s += "; the provider's safety system refused"
	}
	return s
}

// clean keeps what a file says from steering the terminal or reordering its text.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return '?'
		}
		return r
	}, s)
}
