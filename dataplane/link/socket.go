package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// socketName is the worker's socket in the data directory.
const socketName = "worker.sock"

// Descriptors that a worker finds open when it starts. Those after
// FirstExtraFD are the ones given as keeper.Config.WorkerFiles.
const (
	APIFD        = 3 // listening TCP socket for clients
	PeerFD       = 4 // listening TCP socket for other workers
	SocketFD     = 5 // listening unix socket for the keeper
	RingFD       = 6 // memory for records, shared with the keeper
	FirstExtraFD = 7
)

// preamble goes before the first message and names the protocol's version. It
// carries the worker's Files: a keeper that adopts a worker reads its records,
// and holds its listeners open when it restarts it.
const preamble = "rmL2"

// ErrVersion means that the worker speaks another version of the protocol.
var ErrVersion = errors.New("the worker is of another version: end it, and its keeper starts one of its own")

// Files are the descriptors that a worker hands to a keeper which adopts it.
type Files struct {
	API, Peer *os.File // listening sockets
	Ring      *os.File // memory for records, ring.OpenConsumer
}

func (f *Files) list() []*os.File { return []*os.File{f.API, f.Peer, f.Ring} }

// Close closes the descriptors, not what they stand for.
func (f *Files) Close() {
	for _, file := range f.list() {
		if file != nil {
			_ = file.Close() // only held something open
		}
	}
}

// maxPath is what fits the kernel's address of a unix socket.
const maxPath = 107

// Inherited returns what a worker finds open when it starts: its listeners for
// clients, peers and keepers, and its files to hand on.
func Inherited() (api, peer, socket net.Listener, files Files, err error) {
	var all [3]net.Listener
	for i, fd := range []uintptr{APIFD, PeerFD, SocketFD} {
		f := os.NewFile(fd, "inherited listener")
		if f == nil {
			return nil, nil, nil, Files{}, fmt.Errorf("descriptor %d is not open: a worker is started by its keeper", fd)
		}
		if all[i], err = net.FileListener(f); err != nil {
			return nil, nil, nil, Files{}, fmt.Errorf("descriptor %d is no listener: a worker is started by its keeper: %w", fd, err)
		}
		switch fd {
		case APIFD:
			files.API = f
		case PeerFD:
			files.Peer = f
		default:
			_ = f.Close() // the listener is a copy
		}
	}
	files.Ring = os.NewFile(RingFD, "ring of records")
	return all[0], all[1], all[2], files, nil
}

// address returns a path to name in dir that fits a socket address, and a
// function that releases it.
func address(dir, name string) (string, func(), error) {
	path := filepath.Join(dir, name)
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, fmt.Errorf("open the data directory: %w", err)
	}
	short := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)
	return short, func() { _ = d.Close() }, nil // opened for reading: nothing is lost
}

// ListenSocket binds the worker's socket in dir, replacing one that a dead
// worker left behind, and returns it as a file to pass on. Only call it when
// DialWorker found no worker.
func ListenSocket(dir string) (*os.File, error) {
	path, release, err := address(dir, socketName)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old worker socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("bind the worker socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err = errors.Join(err, os.Chmod(path, 0o600), l.Close()); err != nil {
		return nil, fmt.Errorf("bind the worker socket: %w", err)
	}
	return f, nil
}

// DialWorker connects to the worker of the data directory dir, and returns
// what it says of itself and copies of its files. No worker: an error that is
// syscall.ECONNREFUSED or os.ErrNotExist. Another protocol: ErrVersion.
func DialWorker(ctx context.Context, dir string) (*Conn, *Hello, *Files, error) {
	path, release, err := address(dir, socketName)
	if err != nil {
		return nil, nil, nil, err
	}
	defer release()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("connect to the worker: %w", err)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(5 * time.Second)
	}
	if err := nc.SetReadDeadline(deadline); err != nil {
		return nil, nil, nil, errors.Join(err, nc.Close())
	}
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		return nil, nil, nil, errors.Join(errors.New("the worker socket is not a unix socket"), nc.Close())
	}
	files, err := receivePreamble(uc)
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("connect to the worker: %w", err), nc.Close())
	}
	c := NewConn(nc)
	m, err := c.Receive()
	if err == nil && m.Type != TypeHello {
		err = fmt.Errorf("%w: a message of type %d instead of a greeting", ErrMalformed, m.Type)
	}
	if err == nil {
		err = nc.SetReadDeadline(time.Time{})
	}
	if err != nil {
		files.Close()
		return nil, nil, nil, errors.Join(fmt.Errorf("connect to the worker: %w", err), c.Close())
	}
	return c, m.Hello, files, nil
}

func sendPreamble(uc *net.UnixConn, files *Files) error {
	list := files.list()
	fds := make([]int, len(list))
	for i, f := range list {
		// Not f.Fd, which may make the shared socket blocking.
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return err
		}
	}
	_, _, err := uc.WriteMsgUnix([]byte(preamble), syscall.UnixRights(fds...), nil)
	return err
}

func receivePreamble(uc *net.UnixConn) (*Files, error) {
	buf, oob := make([]byte, len(preamble)), make([]byte, syscall.CmsgSpace(4*8))
	n, oobn, _, _, err := uc.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	var got []*os.File
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	for i := range messages {
		fds, rightsErr := syscall.ParseUnixRights(&messages[i])
		err = errors.Join(err, rightsErr)
		for _, fd := range fds {
			got = append(got, os.NewFile(uintptr(fd), "file of the worker"))
		}
	}
	switch said := string(buf[:n]); {
	case err != nil:
	case said != preamble && strings.HasPrefix(said, preamble[:3]):
		err = fmt.Errorf("%w (it says %q, this is %q)", ErrVersion, said, preamble)
	case said != preamble || len(got) != 3:
		err = fmt.Errorf("%w: %q and %d files to begin with", ErrMalformed, said, len(got))
	default:
		return &Files{API: got[0], Peer: got[1], Ring: got[2]}, nil
	}
	for _, f := range got {
		_ = f.Close() // only held something open
	}
	return nil, err
}

// sameUser refuses a process of another user at the other end.
func sameUser(uc *net.UnixConn) error {
	uid, err := peerUser(uc)
	if err != nil {
		return err
	}
	if uid != uint32(os.Geteuid()) {
		return fmt.Errorf("user %d may not talk to this worker", uid)
	}
	return nil
}
