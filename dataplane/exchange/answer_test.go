package exchange

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"
)

// Over HTTP/1.1 a client knows by its length that an answer is whole: it must
// not be before the handler has returned, and with that the receipt is committed.
func TestTheEndOfALargeAnswerWaitsForTheHandler(t *testing.T) {
	for _, size := range []int{quickWrite, quickWrite + 1, 3 * quickWrite, slice, slice + 1, 3*slice + quickWrite} {
		release, put := make(chan struct{}), make(chan error, 1)
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			x := &exchange{node: &Node{Config: Config{WriteStall: time.Minute}}, rw: rw, r: r}
			rw.Header().Set("Content-Length", strconv.Itoa(size))
			put <- x.whole(make([]byte, size))
			<-release
		}))
		arrived := make(chan int, 1)
		go func() {
			defer close(arrived)
			resp, err := http.Get(srv.URL)
			if err != nil {
				return
			}
			b, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			arrived <- len(b)
		}()
		if err := <-put; err != nil {
			t.Fatal(err)
		}
		select {
		case n := <-arrived:
			t.Errorf("%d bytes of %d are there before the handler returned", n, size)
			close(release)
		case <-time.After(50 * time.Millisecond):
			close(release)
			if n := <-arrived; n != size {
				t.Errorf("%d bytes of %d arrived", n, size)
			}
		}
		srv.Close()
	}
}
