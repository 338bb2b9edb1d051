package route

import "math"

// lot draws a number such that, among several draws, each is the smallest as
// often as its weight's share of all weights: an exponential of rate weight.
func (p *Plan) lot(weight uint32) float64 {
	u := (float64(p.in.Random()>>11) + 0.5) / (1 << 53)
	return -math.Log(u) / float64(max(weight, 1))
}
