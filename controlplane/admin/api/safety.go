package api

import "time"

// Revoked is what came of the revocation of one thing that is no API key.
type Revoked struct {
	Kind         string     `json:"kind" enum:"credential,node,token"`
	ID           string     `json:"id" doc:"What the safety set calls it"`
	Subject      string     `json:"subject" doc:"What the request called it: an upstream's id, a node as region/role/name, a token's name"`
	Revoked      time.Time  `json:"revoked" doc:"Since when"`
	Expires      *time.Time `json:"expires,omitempty" doc:"When it would have ended by itself"`
	Upstreams    []string   `json:"upstreams,omitempty" doc:"Names of all upstreams that are called with the credential: none of them is, until it has another"`
	Unseen       bool       `json:"unseen,omitempty" doc:"Gossip knows no node of that name: check the spelling"`
	Held         *Held      `json:"held"`
	Acknowledged string     `json:"acknowledged,omitempty" doc:"How safe the revocation is: region or multi-region"`
}

// Acknowledge says how safe the revocation is.
func (r *Revoked) Acknowledge(level string) { r.Acknowledged = level }

// Token is one operator's token, as the asked node is configured.
type Token struct {
	Name    string     `json:"name"`
	SHA256  string     `json:"sha256" doc:"Of the token's text, in hex"`
	Expires time.Time  `json:"expires"`
	Revoked *time.Time `json:"revoked,omitempty" doc:"Since when it is refused, for good"`
}

// TokenList is all of them.
type TokenList struct {
	Items []Token `json:"items" nullable:"false"`
}
