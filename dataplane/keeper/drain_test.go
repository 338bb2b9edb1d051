package keeper

import (
	"testing"
	"time"

	"ringmain/dataplane/link"
)

// TestDrainSaysHowLong: a worker that is to finish hears when it will be killed.
func TestDrainSaysHowLong(t *testing.T) {
	k := new(Keeper)
	if m := k.drain(); m.Type != link.TypeDrain || m.Seq != 0 {
		t.Errorf("without a time: %+v", m)
	}
	for by, most := range map[time.Duration]uint64{time.Minute: 60_000, -time.Second: 1} {
		k.closeBy.Store(time.Now().Add(by).UnixMilli())
		if m := k.drain(); m.Seq == 0 || m.Seq > most || most > 1 && m.Seq < most/2 {
			t.Errorf("killed in %v: %+v", by, m)
		}
	}
}
