package controlplane_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane"
)

const hush = "sk-very-secret-value"

// holder keeps secrets in every way a struct can.
type holder struct {
	Public  controlplane.Secret
	private controlplane.Secret
	pointer *controlplane.Secret
	list    []controlplane.Secret
	table   map[string]controlplane.Secret
	any     any
}

func TestSecretNeverShows(t *testing.T) {
	s := controlplane.NewSecret(hush)
	h := holder{s, s, &s, []controlplane.Secret{s}, map[string]controlplane.Secret{"k": s}, s}
	values := map[string]any{"value": s, "pointer": &s, "struct": h, "struct pointer": &h, "list": []any{s, &s, h, &h}}
	for name, v := range values {
		var outputs []string
		for _, verb := range "bcdeEfFgGoOpqstTUvxXw" {
			for _, flags := range []string{"", "+", "#", "-20", "020", " "} {
				outputs = append(outputs, fmt.Sprintf("%"+flags+string(verb), v))
			}
		}
		outputs = append(outputs, fmt.Sprint(v), fmt.Sprintln(v), fmt.Errorf("failed: %v", v).Error())
		for _, handler := range []func(*bytes.Buffer) slog.Handler{
			func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
			func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
		} {
			var b bytes.Buffer
			log := slog.New(handler(&b)).With("with", v)
			log.Info("message", "attr", v, slog.Group("group", "inner", v))
			outputs = append(outputs, b.String())
		}
		if b, err := json.Marshal(v); err == nil {
			outputs = append(outputs, string(b))
		}
		if b, err := xml.Marshal(v); err == nil {
			outputs = append(outputs, string(b))
		}
		for _, out := range outputs {
			if strings.Contains(out, hush) || strings.Contains(out, fmt.Sprintf("%x", hush)) || strings.Contains(out, fmt.Sprintf("%X", hush)) {
				t.Errorf("%s leaked: %s", name, out)
			}
		}
	}
	if got := fmt.Sprintf("%s %v %#v %+v %q", s, s, s, &s, s); strings.Count(got, "[sealed]") != 5 {
		t.Errorf("printed as %s", got)
	}
	b, err := json.Marshal(map[string]any{"a": s, "b": &s})
	if err != nil || string(b) != `{"a":"[sealed]","b":"[sealed]"}` {
		t.Errorf("JSON %s, %v", b, err)
	}
	if s.Reveal() != hush || (controlplane.Secret{}).Reveal() != "" {
		t.Error("a secret does not reveal its value")
	}
}

func TestEpochOrder(t *testing.T) {
	ascending := []controlplane.Epoch{{}, {Region: "a"}, {Counter: 1}, {Counter: 1, Region: "a"}, {Counter: 1, Region: "b"}, {Counter: 2}, {Counter: 10, Region: "a"}}
	for i, e := range ascending {
		for j, f := range ascending {
			if e.Compare(f) != cmp.Compare(i, j) {
				t.Errorf("%s and %s: %d", e, f, e.Compare(f))
			}
			p, q := controlplane.Point{Epoch: e, Seq: 9}, controlplane.Point{Epoch: f, Seq: 1}
			want := cmp.Compare(i, j)
			if i == j {
				want = 1
			}
			if p.Compare(q) != want {
				t.Errorf("points at %s.9 and %s.1: %d", e, f, p.Compare(q))
			}
		}
	}
	if got := fmt.Sprint(controlplane.Epoch{}, controlplane.Epoch{Counter: 3, Region: "eu-fra"}); got != "- 3/eu-fra" {
		t.Errorf("printed as %s", got)
	}
}

func TestPosition(t *testing.T) {
	point := func(counter, seq uint64) controlplane.Point {
		return controlplane.Point{Epoch: controlplane.Epoch{Counter: counter, Region: "a"}, Seq: seq}
	}
	p := controlplane.Position{"global": point(1, 5), "eu": point(2, 3)}
	covered := map[string]struct {
		q    controlplane.Position
		want bool
	}{
		"nothing":      {nil, true},
		"itself":       {p, true},
		"less":         {controlplane.Position{"global": point(1, 4)}, true},
		"lower epoch":  {controlplane.Position{"eu": point(1, 99)}, true},
		"more":         {controlplane.Position{"global": point(1, 6)}, false},
		"higher epoch": {controlplane.Position{"eu": point(3, 1)}, false},
		"more shards":  {controlplane.Position{"us": point(1, 1)}, false},
		"zero point":   {controlplane.Position{"us": {}}, true},
	}
	for name, tt := range covered {
		if got := p.Covers(tt.q); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	c := p.Clone()
	c["eu"] = point(9, 9)
	if p["eu"] != point(2, 3) {
		t.Error("a clone shares with its original")
	}
	if (controlplane.Position)(nil).Clone() == nil {
		t.Error("the clone of nothing cannot be written to")
	}
}

func TestPositionCoversIsAPartialOrder(t *testing.T) {
	draw := func(t *rapid.T, label string) controlplane.Position {
		p := controlplane.Position{}
		for _, shard := range []controlplane.Shard{"global", "eu"} {
			p[shard] = controlplane.Point{
				Epoch: controlplane.Epoch{Counter: rapid.Uint64Range(0, 2).Draw(t, label), Region: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, label)},
				Seq:   rapid.Uint64Range(0, 2).Draw(t, label),
			}
		}
		return p
	}
	rapid.Check(t, func(t *rapid.T) {
		p, q, r := draw(t, "p"), draw(t, "q"), draw(t, "r")
		if !p.Covers(p.Clone()) {
			t.Fatal("not reflexive")
		}
		if p.Covers(q) && q.Covers(r) && !p.Covers(r) {
			t.Fatal("not transitive")
		}
		for shard := range p {
			if c := p[shard].Compare(q[shard]); c != -q[shard].Compare(p[shard]) || (c == 0) != (p[shard] == q[shard]) {
				t.Fatal("points are not totally ordered")
			}
		}
	})
}

func TestShards(t *testing.T) {
	got := []controlplane.Shard{controlplane.ShardGlobal, controlplane.ShardAny("us-east"), controlplane.ShardPinned("eu")}
	if want := []controlplane.Shard{"global", "any-us-east", "eu"}; !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
}

func TestRuleError(t *testing.T) {
	err := fmt.Errorf("apply: %w", controlplane.Refuse(controlplane.RuleConflict, "name", "%q is taken", "web"))
	var rule *controlplane.RuleError
	if !errors.As(err, &rule) || rule.Code != controlplane.RuleConflict || err.Error() != `apply: name: "web" is taken` {
		t.Errorf("%v", err)
	}
	if got := controlplane.Refuse(controlplane.RuleInvalid, "", "nothing to do").Error(); got != "nothing to do" {
		t.Errorf("%s", got)
	}
}
