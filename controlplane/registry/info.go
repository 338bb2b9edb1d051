package registry

import (
	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
)

// Span is where an epoch begins in a shard's history, and what its opening said.
type Span = ownership.Span

// ShardInfo is a shard's place in the world. Its slices are read-only.
type ShardInfo struct {
	Shard     controlplane.Shard
	Members   []string           // regions that hold it, sorted
	Home      string             // region that may write it
	Epoch     controlplane.Epoch // highest epoch promised: lower senders are refused
	Last      controlplane.Point // last entry applied
	Spans     []Span             // epochs by ascending start, as far back as is known; at cluster version 1 without members
	Confirmed uint64             // highest sequence known confirmed; 0 at cluster version 1
}

// Copy is what the rules of ownership need of i. It means nothing at cluster
// version 1.
func (i ShardInfo) Copy() ownership.Copy {
	return ownership.Copy{Promised: i.Epoch, Last: i.Last, Spans: i.Spans, Confirmed: i.Confirmed}
}

// Follow makes i what the rules of ownership made of its copy.
func (i *ShardInfo) Follow(c ownership.Copy) {
	former := i.Spans
	i.Epoch, i.Last, i.Spans, i.Confirmed = c.Promised, c.Last, c.Spans, c.Confirmed
	switch n := len(c.Spans); {
	case n == 0:
		i.Members, i.Home = nil, ""
	case n != len(former) || c.Spans[n-1].Epoch != former[n-1].Epoch:
		i.Home, i.Members = c.Spans[n-1].Epoch.Region, nil
		for _, m := range c.Spans[n-1].Members {
			i.Members = append(i.Members, m.Region)
		}
	}
}

// shardRow1 is a ShardInfo at cluster version 1.
type shardRow1 struct {
	_       struct{} `cbor:",toarray"`
	Shard   controlplane.Shard
	Members []string
	Home    string
	Epoch   controlplane.Epoch
	Last    controlplane.Point
	Spans   []spanRow1
}

type spanRow1 struct {
	_     struct{} `cbor:",toarray"`
	Epoch controlplane.Epoch
	Start uint64
}

// shardRow2 is a ShardInfo at cluster version 2: its last span says who the
// members are, and its epoch's region is the home.
type shardRow2 struct {
	_         struct{} `cbor:",toarray"`
	Shard     controlplane.Shard
	Promised  controlplane.Epoch
	Last      controlplane.Point
	Spans     []Span
	Confirmed uint64
}

// EncodeShard returns a shard's info as snapshots and images of the cluster
// version hold it.
func EncodeShard(info ShardInfo, version uint64) ([]byte, error) {
	if version > 1 {
		return Encode(shardRow2{Shard: info.Shard, Promised: info.Epoch, Last: info.Last, Spans: info.Spans, Confirmed: info.Confirmed})
	}
	row := shardRow1{Shard: info.Shard, Members: info.Members, Home: info.Home, Epoch: info.Epoch, Last: info.Last}
	for _, s := range info.Spans {
		row.Spans = append(row.Spans, spanRow1{Epoch: s.Epoch, Start: s.Start})
	}
	return Encode(row)
}

// DecodeShard reads what EncodeShard wrote.
func DecodeShard(b []byte, version uint64) (ShardInfo, error) {
	if version > 1 {
		var row shardRow2
		if err := Decode(b, &row); err != nil {
			return ShardInfo{}, err
		}
		info := ShardInfo{Shard: row.Shard}
		info.Follow(ownership.Copy{Promised: row.Promised, Last: row.Last, Spans: row.Spans, Confirmed: row.Confirmed})
		return info, nil
	}
	var row shardRow1
	if err := Decode(b, &row); err != nil {
		return ShardInfo{}, err
	}
	info := ShardInfo{Shard: row.Shard, Members: row.Members, Home: row.Home, Epoch: row.Epoch, Last: row.Last}
	for _, s := range row.Spans {
		info.Spans = append(info.Spans, Span{Epoch: s.Epoch, Start: s.Start})
	}
	return info, nil
}
