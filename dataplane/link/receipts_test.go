package link

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func TestReceipts(t *testing.T) {
	dir, a := attend(t, AttendConfig{State: new(stateStub), HealthEvery: 5 * time.Millisecond})
	var mu sync.Mutex
	var acked []uint64
	again := 0
	a.WatchReceipts(func(n uint64) {
		mu.Lock()
		defer mu.Unlock()
		acked = append(acked, n)
	}, func() {
		mu.Lock()
		defer mu.Unlock()
		again++
	})
	if a.KeepReceipts(1, []byte("batch")) {
		t.Error("a batch was taken without a keeper")
	}
	if _, err := a.AskReceipt(t.Context(), "req"); !errors.Is(err, ErrNoKeeper) {
		t.Errorf("asked without a keeper: %v", err)
	}
	k, _, _ := dial(t, dir)
	within(t, "the keeper is announced", func() bool { mu.Lock(); defer mu.Unlock(); return again == 1 })
	if !a.KeepReceipts(1, []byte("batch")) {
		t.Fatal("the batch was not taken")
	}
	if m := receive(t, k, TypeReceipts); m.Seq != 1 || string(m.Bytes) != "batch" {
		t.Errorf("%+v", m)
	}
	send(t, k, &Message{Type: TypeReceiptsAck, Seq: 1})
	within(t, "the acknowledgement", func() bool { mu.Lock(); defer mu.Unlock(); return len(acked) == 1 && acked[0] == 1 })

	// Answers find their questions, in any order.
	var asks sync.WaitGroup
	for _, id := range []string{"one", "two", "none"} {
		asks.Go(func() {
			want := "entry of " + id
			if id == "none" {
				want = ""
			}
			if b, err := a.AskReceipt(t.Context(), id); err != nil || string(b) != want {
				t.Errorf("%s: %q, %v", id, b, err)
			}
		})
	}
	var questions []*Message
	for range 3 {
		questions = append(questions, receive(t, k, TypeReceiptAsk))
	}
	send(t, k, &Message{Type: TypeReceiptAnswer, Seq: 999, Bytes: []byte("of no question")})
	for i := range questions {
		m := questions[2-i]
		answer := &Message{Type: TypeReceiptAnswer, Seq: m.Seq}
		if id := string(m.Bytes); id != "none" {
			answer.Bytes = []byte("entry of " + id)
		}
		send(t, k, answer)
	}
	asks.Wait()

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := a.AskReceipt(ctx, "late"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a keeper that does not answer: %v", err)
	}
	asks.Go(func() {
		if _, err := a.AskReceipt(t.Context(), "gone"); !errors.Is(err, ErrNoKeeper) {
			t.Errorf("a keeper that goes: %v", err)
		}
	})
	receive(t, k, TypeReceiptAsk) // late
	receive(t, k, TypeReceiptAsk) // gone
	_ = k.Close()
	asks.Wait()
	a.receipts.mu.Lock()
	defer a.receipts.mu.Unlock()
	if len(a.receipts.wants) != 0 {
		t.Errorf("%d questions are left", len(a.receipts.wants))
	}
}
