package identity

import "time"

// SetNow sets the clock by which b judges its peers.
func (b *Bundle) SetNow(now func() time.Time) { b.now = now }

// SignWith issues id's certificate under the issuer of another region, which
// no honest CA would do.
func (ca *CA) SignWith(region string, id ID, ttl time.Duration) (*Issued, error) {
	issuer, err := ca.issuer(region, ca.now().Add(ttl))
	if err != nil {
		return nil, err
	}
	return ca.leaf(issuer, id, nil, ttl)
}
