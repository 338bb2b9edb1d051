package keeper

import (
	"context"

	"ringmain/dataplane/keeper/receipts"
	"ringmain/dataplane/link"
	"ringmain/dataplane/receipt/proof"
)

// openReceipts opens the store of the worker's signed receipts.
func (k *Keeper) openReceipts(ctx context.Context, name string) (err error) {
	k.proofs, err = receipts.Open(ctx, receipts.Config{
		Dir: k.cfg.Dir, Name: name, Sealer: k.cfg.Sealer, Total: k.cfg.Tunables.ReceiptBytes, Age: k.cfg.Tunables.ReceiptAge,
		Acked: k.receiptsAcked, Logger: k.log,
	})
	return err
}

// receiptsAcked tells the worker that a batch of its receipts is on the
// medium. One that misses it offers the batch again after a while.
func (k *Keeper) receiptsAcked(run, number uint64) {
	if w := k.current(); w != nil && w.hello.Run == run {
		w.post(&link.Message{Type: link.TypeReceiptsAck, Seq: number})
	}
}

// maxAsks is how many questions may wait for the disk at once: twice what one
// worker asks.
const maxAsks = 16

// ask answers a worker's question when the disk does. While that stalls more
// of them are dropped: the worker's wait is bounded.
func (k *Keeper) ask(w *worker, m *link.Message) {
	k.asked.TryGo(func() error { k.findReceipt(w, m); return nil })
}

// findReceipt answers one question of the worker's.
func (k *Keeper) findReceipt(w *worker, m *link.Message) {
	var entry []byte
	var err error
	if string(m.Bytes) == proof.AskFormer {
		entry, err = proof.EncodeDelegations(k.proofs.Delegations())
	} else {
		entry, err = k.proofs.Find(string(m.Bytes))
	}
	if err != nil {
		k.log.Error("receipts on disk are damaged: one that was asked for may be among them", "request", string(m.Bytes), "error", err)
	}
	w.post(&link.Message{Type: link.TypeReceiptAnswer, Seq: m.Seq, Bytes: entry})
}
