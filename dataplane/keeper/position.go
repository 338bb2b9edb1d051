package keeper

import "ringmain/controlplane"

// Given is how far the state is that the worker was given; nil while no worker
// takes it.
func (k *Keeper) Given() controlplane.Position {
	f := &k.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.live == nil {
		return nil
	}
	return f.tracker.Position()
}
