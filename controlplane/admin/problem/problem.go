// Package problem says errors in HTTP: the one place where what a room below
// reports becomes a status, a code and the caller's next move. It decides
// nothing else, and knows no request.
package problem

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/homes"
)

// New builds an error answer; field may be empty.
func New(status int, code, field, detail string) *api.Problem {
	return &api.Problem{
		Type: "urn:ringmain:problem:" + code, Title: http.StatusText(status),
		Status: status, Code: code, Field: field, Detail: detail,
	}
}

// Invalid says that a field of the request is wrong.
func Invalid(field, detail string) *api.Problem {
	return New(http.StatusUnprocessableEntity, api.CodeInvalid, field, detail)
}

// Conflict says that what is there forbids it.
func Conflict(field, detail string) *api.Problem {
	return New(http.StatusConflict, string(controlplane.RuleConflict), field, detail)
}

// Unauthorized says that nobody knows who asks.
func Unauthorized() *api.Problem {
	return New(http.StatusUnauthorized, api.CodeUnauthorized, "",
		"Send `authorization: Bearer <admin token>` with a token that this cluster knows and that has not ended.")
}

// NotFound says that there is no such record.
func NotFound(what, id string) *api.Problem {
	return New(http.StatusNotFound, api.CodeNotFound, "",
		what+" "+strconv.Quote(id)+" does not exist here. If it was created through another region a moment ago, try again")
}

var ruleStatus = map[controlplane.RuleCode]int{
	controlplane.RuleInvalid:   http.StatusUnprocessableEntity,
	controlplane.RuleNotFound:  http.StatusNotFound,
	controlplane.RuleConflict:  http.StatusConflict,
	controlplane.RuleRevision:  http.StatusPreconditionFailed,
	controlplane.RuleForbidden: http.StatusForbidden,
}

// sentinels in the order in which they are looked for: the one that says least
// about the caller's next move comes last.
var sentinels = []struct {
	err    error
	code   string
	detail string
}{
	{controlplane.ErrUncertain, api.CodeUncertain, "The write may or may not have been committed: read the record before you repeat it."},
	{controlplane.ErrOverloaded, api.CodeOverloaded, "Too many writes are waiting. Nothing was written: repeat the request in a second."},
	{controlplane.ErrDiskFull, api.CodeDiskFull, "The disk of the control node is full. Nothing was written: free space, then repeat the request."},
	{controlplane.ErrUnreachable, api.CodeUnreachable, "The region that must answer cannot be reached. Nothing was written: repeat the request later."},
	{controlplane.ErrTailFull, api.CodeTailFull, "Too many writes wait for other regions to confirm them. Nothing was written: restore the connection to those, then repeat the request."},
	{controlplane.ErrNoHome, api.CodeNoLeader, "The shard's home is being changed or confirmed. Nothing was written: repeat the request in a second."},
	{controlplane.ErrNotHome, api.CodeNoLeader, "The shard's home is changing. Nothing was written: repeat the request in a second."},
	{controlplane.ErrNotLeader, api.CodeNoLeader, "Leadership is changing. Nothing was written: repeat the request in a second."},
	{controlplane.ErrNoLeader, api.CodeNoLeader, "The region has no leader at the moment. Nothing was written: repeat the request in a second."},
}

// Of turns any error into the Problem that the caller sees. The texts of
// errors that we did not foresee stay in the log.
func Of(err error) *api.Problem {
	var p *api.Problem
	if errors.As(err, &p) {
		return p
	}
	var rule *controlplane.RuleError
	if errors.As(err, &rule) {
		status, ok := ruleStatus[rule.Code]
		if !ok {
			status = http.StatusUnprocessableEntity
		}
		field := strings.TrimPrefix(rule.Field, "meta.")
		return New(status, string(rule.Code), field, rule.Message)
	}
	if p := explainHomes(err); p != nil {
		return p
	}
	if errors.Is(err, controlplane.ErrUncertain) && errors.Is(err, controlplane.ErrDiskFull) {
		return New(http.StatusServiceUnavailable, api.CodeUncertain, "",
			"The disk of the control node is full: free space. The write may or may not have been committed: read the record before you repeat it.")
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return New(http.StatusServiceUnavailable, s.code, "", s.detail)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return New(http.StatusServiceUnavailable, api.CodeUncertain, "",
			"The request took too long. If it was a write, it may or may not have been committed: read the record before you repeat it.")
	}
	return New(http.StatusInternalServerError, api.CodeInternal, "",
		"The node failed to answer: report this with the request id, which the node's log has too.")
}

// OfHuma turns the errors that huma makes (validation, body, negotiation)
// into ours. It drops the rejected values, which may be credentials.
func OfHuma(e *huma.ErrorModel) *api.Problem {
	code := map[int]string{
		http.StatusBadRequest:            api.CodeInvalidJSON,
		http.StatusUnprocessableEntity:   api.CodeInvalid,
		http.StatusRequestEntityTooLarge: api.CodeTooLarge,
		http.StatusUnsupportedMediaType:  api.CodeMediaType,
		http.StatusNotAcceptable:         api.CodeNotAccept,
		http.StatusRequestTimeout:        api.CodeTimeout,
	}[e.Status]
	if code == "" {
		code = api.CodeInternal
	}
	p := New(e.Status, code, "", e.Detail)
	for _, d := range e.Errors {
		if d == nil {
			continue
		}
		field := strings.TrimPrefix(strings.TrimPrefix(d.Location, "body"), ".")
		if p.Field == "" && len(p.Errors) == 0 {
			p.Field, p.Detail = field, d.Message
		}
		p.Errors = append(p.Errors, api.FieldError{Field: field, Message: d.Message})
	}
	switch e.Status {
	case http.StatusUnsupportedMediaType:
		p.Field, p.Detail, p.Errors = "", "Send the body with `content-type: application/json`.", nil
	case http.StatusNotAcceptable:
		p.Field, p.Detail, p.Errors = "", "Only application/json can be had.", nil
	}
	if len(p.Errors) == 1 {
		p.Errors = nil
	}
	if e.Status == http.StatusInternalServerError {
		p.Detail, p.Errors = Of(nil).Detail, nil
	}
	return p
}

// Finish completes a Problem for the request, and sets the headers it needs.
func Finish(h http.Header, p *api.Problem) *api.Problem {
	done := *p // Of may hand out the same Problem to several requests
	done.RequestID = h.Get(api.HeaderRequestID)
	h.Set(api.HeaderErrorCode, done.Code)
	switch done.Status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="ringmain-admin"`)
	}
	return &done
}

// Write answers with err, outside of huma.
func Write(w http.ResponseWriter, err error) {
	p := Finish(w.Header(), Of(err))
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client is gone: nobody to tell
}

// homesProblems say in HTTP what may come of a takeover or move. Nobody can
// repeat these blindly: they are not of class 503.
var homesProblems = []struct {
	err    error
	status int
	code   string
}{
	{homes.ErrHomeLives, http.StatusConflict, api.CodeHomeLives},
	{homes.ErrAlreadyHome, http.StatusConflict, string(controlplane.RuleConflict)},
	{homes.ErrNoVersion, http.StatusConflict, api.CodeNotUpgraded},
	{homes.ErrRival, http.StatusConflict, string(controlplane.RuleConflict)},
	{homes.ErrBusy, http.StatusConflict, string(controlplane.RuleConflict)},
	{homes.ErrMoveAborted, http.StatusConflict, api.CodeMoveAborted},
	{homes.ErrParted, http.StatusConflict, string(controlplane.RuleConflict)},
	{homes.ErrFormerLife, http.StatusConflict, string(controlplane.RuleConflict)},
	{homes.ErrNotMember, http.StatusUnprocessableEntity, api.CodeInvalid},
	{homes.ErrNoMajority, http.StatusServiceUnavailable, api.CodeNoMajority},
	{homes.ErrDeposed, http.StatusConflict, api.CodeDeposed},
}

func explainHomes(err error) *api.Problem {
	for _, h := range homesProblems {
		if errors.Is(err, h.err) {
			text := h.err.Error()
			if errors.Is(err, homes.ErrHomeLives) {
				text = "the shard's home answers: move the shard instead (`ringmain shard move`), or take it all the same, which stops the home's writes, with live: true (`--force`)"
			}
			return New(h.status, h.code, "", strings.ToUpper(text[:1])+text[1:]+".")
		}
	}
	return nil
}
