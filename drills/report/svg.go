package report

import (
	"fmt"
	"html"
	"strings"
)

// Measures of the chart, in pixels.
const (
	chartLeft, chartTop     = 46, 92
	chartWidth, chartHeight = 840, 200
)

// SVG draws the requests of each second, stacked by what their entry answered,
// with the moments of the timeline. It needs no font, script or network.
func (r *Report) SVG() string {
	tallest := 1
	for i := range r.Seconds {
		tallest = max(tallest, r.Seconds[i].total())
	}
	n := max(len(r.Seconds), 1)
	step := float64(chartWidth) / float64(n)
	scale := float64(chartHeight) / float64(tallest)
	bottom := chartTop + chartHeight

	var b strings.Builder
	put := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`, chartLeft+chartWidth+14, bottom+58)
	put(`<rect width="100%%" height="100%%" fill="#ffffff"/>`)
	put(`<text x="%d" y="20" font-size="14" font-weight="bold">%s</text>`, chartLeft, html.EscapeString(r.verdictLine()))
	put(`<text x="%d" y="36" fill="#555555">requests planned in each second, by what their entry answered</text>`, chartLeft)
	for _, share := range []float64{0, 0.5, 1} {
		y := float64(bottom) - share*float64(chartHeight)
		put(`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#dddddd"/>`, chartLeft, chartLeft+chartWidth, y, y)
		put(`<text x="%d" y="%.1f" text-anchor="end">%.0f</text>`, chartLeft-5, y+4, share*float64(tallest))
	}
	kinds := []struct {
		name, colour string
		count        func(*Second) int
	}{
		{"answered", "#7fb98a", func(s *Second) int { return s.OK }},
		{"answered by the next region", "#a9c7e8", func(s *Second) int { return s.Elsewhere }},
		{"shed", "#e8cf7a", func(s *Second) int { return s.Shed }},
		{"in-band error", "#e39a55", func(s *Second) int { return s.InBand }},
		{"truncated", "#b98bc9", func(s *Second) int { return s.Truncated }},
		{"failed", "#cf5c5c", func(s *Second) int { return s.Failed }},
		{"wrongly complete", "#000000", func(s *Second) int { return s.Wrong }},
	}
	for i := range r.Seconds {
		y := float64(bottom)
		for _, k := range kinds {
			if count := k.count(&r.Seconds[i]); count > 0 {
				h := float64(count) * scale
				y -= h
				put(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`, float64(chartLeft)+float64(i)*step, y, max(step-1, 0.5), h, k.colour)
			}
		}
	}
	for i := 0; i <= len(r.Seconds); i += 10 {
		put(`<text x="%.1f" y="%d" text-anchor="middle">%d s</text>`, float64(chartLeft)+float64(i)*step, bottom+15, i)
	}
	var taken [4]float64 // how far right each row of labels is full
	for _, m := range r.Timeline {
		if m.AtMS == nil {
			continue
		}
		x := float64(chartLeft) + *m.AtMS/1000*step
		row := 0
		for row < len(taken)-1 && x < taken[row] {
			row++
		}
		taken[row] = x + float64(8+6*len(m.ID))
		put(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#333333" stroke-dasharray="3,2"/>`, x, x, chartTop-4-11*row, bottom)
		put(`<text x="%.1f" y="%d">%s</text>`, x+2, chartTop-6-11*row, html.EscapeString(m.ID))
	}
	x := chartLeft
	for _, k := range kinds {
		put(`<rect x="%d" y="%d" width="10" height="10" fill="%s"/>`, x, bottom+32, k.colour)
		put(`<text x="%d" y="%d">%s</text>`, x+14, bottom+41, k.name)
		x += 30 + 7*len(k.name)
	}
	put(`</svg>`)
	return b.String()
}
