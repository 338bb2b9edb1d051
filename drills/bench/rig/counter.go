package rig

// Instructions that processes executed in user mode and in the kernel.
type Instructions struct{ User, Kernel uint64 }
