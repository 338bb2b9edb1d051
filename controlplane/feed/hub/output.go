package hub

import (
	"net/http"
	"time"

	"ringmain/controlplane/feed"
)

const (
	outputBytes = 64 << 10
	keptBytes   = 4 << 10 // of the buffer, while there is nothing to write: there are thousands of outputs
)

// output gathers frames and writes them, with a bound on how long a peer may
// take nothing.
type output struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	buf     []byte
	dirty   bool // written since the last flush
}

func (o *output) frame(f *feed.Frame) (err error) {
	if o.buf, err = feed.AppendFrame(o.buf, f); err != nil {
		return err
	}
	return o.spill()
}

// add writes what is shared with other watchers; a large piece is not copied.
func (o *output) add(encoded []byte) error {
	if len(encoded) < outputBytes/4 {
		o.buf = append(o.buf, encoded...)
		return o.spill()
	}
	if err := o.write(o.buf); err != nil {
		return err
	}
	return o.write(encoded)
}

func (o *output) spill() error {
	if len(o.buf) < outputBytes {
		return nil
	}
	return o.write(o.buf)
}

// write sends b, which may be the buffer: that is empty afterwards.
func (o *output) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := o.rc.SetWriteDeadline(time.Now().Add(o.timeout)); err != nil {
		return err
	}
	_, err := o.w.Write(b)
	o.dirty, o.buf = true, o.buf[:0]
	return err
}

// flush sends all that was added. An idle stream has no deadline.
func (o *output) flush() error {
	if err := o.write(o.buf); err != nil {
		return err
	}
	if cap(o.buf) > keptBytes {
		o.buf = nil
	}
	if !o.dirty {
		return nil
	}
	o.dirty = false
	if err := o.rc.Flush(); err != nil {
		return err
	}
	return o.rc.SetWriteDeadline(time.Time{})
}
