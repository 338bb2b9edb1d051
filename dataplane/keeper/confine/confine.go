// Package confine takes from a process the means to write what it sees:
// Landlock, file size limit, core dumps, debuggers and swap.
//
// It confines the calling process only, and it measures what holds instead of
// trusting what was asked for. No path of the node's own may be granted here:
// a worker needs none.
package confine

// Measured says which controls hold for this process, by trying them.
type Measured struct {
	Landlock    int  // ABI of the kernel, if opening a file for writing is refused; 0 = not confined
	NoFileWrite bool // the file size limit is 0: writing to a file that is open already fails
	NoDump      bool // no core file, and other processes of the user cannot read the memory
	NoSwap      bool // no swap space, or none for this process's control group
}
