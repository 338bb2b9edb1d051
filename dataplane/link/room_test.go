package link

import (
	"errors"
	"testing"
	"time"

	"ringmain/dataplane/link/ring"
)

// While there is room, the record of every request that is under way finds its
// place, however many there are: nobody is refused after an upstream answered.
func TestRoomForWhatIsUnderWay(t *testing.T) {
	const size, underway = 1 << 20, 800
	f, err := ring.Create(size, 9)
	if err != nil {
		t.Fatal(err)
	}
	_, a := attend(t, AttendConfig{Files: Files{Ring: f}, HealthEvery: time.Millisecond})
	looked := make(chan struct{}, 1)
	a.WatchHealth(func() Health {
		select {
		case looked <- struct{}{}:
		default:
		}
		return Health{InFlight: underway}
	})
	for range 3 { // the first look may have begun before
		<-looked
	}
	record := make([]byte, 440) // a long one, as records go
	for a.Room() {
		if err := a.Emit(record); err != nil {
			t.Fatalf("refused with room left: %v", err)
		}
	}
	if w := a.Waiting(); w < size/2-1<<10 {
		t.Errorf("no room is left for new requests with %d of %d bytes waiting", w, size)
	}
	for i := range underway {
		if err := a.Emit(record); err != nil {
			t.Fatalf("of %d requests under way number %d could not be recorded: %v", underway, i, err)
		}
	}
}

// However much is under way, half of the memory is for records that wait.
func TestRoomIsNotAllOwed(t *testing.T) {
	f, err := ring.Create(1<<20, 9)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ring.OpenProducer(f)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(p.Close(), f.Close()); err != nil {
			t.Error(err)
		}
	}()
	if !p.Room(1 << 30) {
		t.Error("an empty ring has no room")
	}
}
