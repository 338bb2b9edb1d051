package walk

import (
	"context"
	"errors"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/relay"
)

const (
	rounds      = 3               // over stops that failed, but spoke
	maxWait     = 2 * time.Second // for an upstream that says when to come back
	firstPause  = 100 * time.Millisecond
	minDeadline = 10 * time.Millisecond
	maxRest     = 30 * time.Second // that an upstream asks for
)

// askModels walks over the present model, and then over those in reserve.
func (w *Walk) askModels(ctx context.Context) (*relay.Result, Failure) {
	for {
		res, over := w.walkOn(ctx)
		if res != nil || over {
			return res, w.fail
		}
		reserve := len(w.models)
		switch {
		case w.left > 0 && w.nextModel():
		case w.left > 0 && reserve > 0: // none of them may be asked: back to this one
		default:
			return nil, w.lastWord()
		}
	}
}

// lastWord is what the client is told if nobody answered.
func (w *Walk) lastWord() Failure {
	if w.fail.Err == ErrNoRoute {
		return Failure{Err: failOf(w.Plan.Unreachable())}
	}
	return w.fail
}

// askLonger asks the model that takes longer prompts, once, because tooLong
// refused this one. Where nobody answers, that refusal stands.
func (w *Walk) askLonger(ctx context.Context, tooLong *relay.Result) (*relay.Result, Failure) {
	plan, by := w.Plan, w.By
	longer := w.context
	w.context, w.models, w.fail = "", nil, Failure{Err: ErrNoRoute}
	if w.left > 0 && w.fallBack(longer) {
		w.Leave()
		res, fail := w.askModels(ctx)
		if res != nil || fail.Gone {
			tooLong.Release()
			return res, fail
		}
	}
	w.Plan, w.By = plan, by
	return tooLong, Failure{}
}

// walkOn asks stop after stop of the present plan. over: there is no use in
// asking another model; walk.fail says why.
func (w *Walk) walkOn(ctx context.Context) (res *relay.Result, over bool) {
	renewed := false
	for ; w.round < rounds; w.round++ {
		// Another model is asked before one that failed is asked again.
		if w.round > 0 && (len(w.models) > 0 || !w.pause(ctx)) {
			return nil, false
		}
		for i := 0; w.left > 0; i++ {
			if i == len(w.legs) {
				w.extend()
			}
			if i >= len(w.legs) {
				break
			}
			l := &w.legs[i]
			if l.spent || l.turn > w.round || time.Now().Before(l.from) {
				continue
			}
			if time.Until(w.deadline) < minDeadline {
				w.fail = Failure{Err: errTimeout}
				return nil, true
			}
			if w.begun && !renewed {
				plan := w.Plan
				if fail := w.request.Decider.Renew(); fail.Err != nil {
					w.fail = fail
					return nil, true
				}
				if renewed = w.Plan != plan; renewed {
					i = -1
					continue
				}
			}
			renewed, l.turn = false, w.round+1
			res, skipped := w.attempt(ctx, l)
			if skipped == fullIt && w.fail.Err == ErrNoRoute {
				w.fail = Failure{Err: errSaturated}
			}
			if res == nil {
				continue
			}
			w.at, w.begun = i, true
			if errors.Is(res.Cause, relay.ErrAnswerTooLarge) { // another's would be as large
				res.Release()
				w.Leave()
				w.fail = Failure{Err: errAnswerSize, Final: true}
				return nil, true
			}
			if errors.Is(res.Cause, relay.ErrNoRoom) { // nor has this node for another's
				res.Release()
				w.Leave()
				w.fail = Failure{Err: ErrEvents}
				return nil, true
			}
			switch res.Outcome {
			case breaker.OK, breaker.Refused, breaker.ClientError:
				w.fail = Failure{}
				return res, true
			case breaker.ClientGone:
				res.Release()
				w.Leave()
				w.fail = Failure{Gone: true}
				return nil, true
			}
			w.judge(res, i)
			w.ground.Log.Debug("attempt failed", "request", w.request.ID, "region", l.Region, "outcome", res.Outcome.String(), "error", res.Cause)
			res.Release()
			w.Leave()
		}
	}
	return nil, false
}
