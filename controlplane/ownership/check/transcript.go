package check

import (
	"fmt"
	"strings"
)

// transcript replays the steps to the state at, and the failed one after it.
func (m *model) transcript(first state, how []step, at uint32, failed action) []string {
	var actions []action
	if failed.kind != 0 {
		actions = append(actions, failed)
	}
	for ; at != 0; at = how[at].parent {
		actions = append([]action{how[at].action}, actions...)
	}
	violation, s := m.violation, first
	var lines []string
	for n, want := range actions {
		found := false
		var t state
		m.violation = ""
		m.successors(&s, func(a action, after *state) bool {
			if a == want {
				t, found = *after, true
			}
			return !found
		})
		if !found {
			lines = append(lines, fmt.Sprintf("%2d. %+v does not follow", n+1, want))
			break
		}
		lines = append(lines, fmt.Sprintf("%2d. %-58s %s", n+1, m.describe(&s, &t, want), m.effect(&s, &t)))
		s = t
	}
	m.violation = violation
	return lines
}

func (m *model) describe(s, t *state, a action) string {
	who := name(m.cfg.Lives[a.life])
	epoch := ""
	if a.kind != restore && a.slot > 0 {
		epoch = m.h.epochs[a.slot].String()
	}
	switch a.kind {
	case campaign:
		return fmt.Sprintf("%s seals its own %s%s", who, epoch, m.intent(m.options[a.arg]))
	case seal:
		return fmt.Sprintf("%s seals %s and reports", who, epoch)
	case open:
		return fmt.Sprintf("%s opens %s", who, epoch)
	case write:
		return fmt.Sprintf("%s writes w%d", who, t.writes)
	case revoke:
		return fmt.Sprintf("%s revokes, revocation%d", who, t.writes)
	case feed:
		return fmt.Sprintf("%s hears entry %d from the home of %s", who, a.arg, epoch)
	case adopt:
		return fmt.Sprintf("%s hears a snapshot at %d from the home of %s", who, a.arg, epoch)
	case confirm:
		return fmt.Sprintf("%s finds confirmed through %d", who, a.arg)
	case learn:
		return fmt.Sprintf("%s hears from the home of %s: confirmed through %d", who, epoch, a.arg)
	case restore:
		return fmt.Sprintf("%s begins, restored through %d", who, a.arg)
	case forget:
		return fmt.Sprintf("%s crashes and forgets its promise", who)
	default:
		return fmt.Sprintf("%s crashes and loses its last entry", who)
	}
}

func (m *model) intent(o Option) string {
	var parts []string
	for _, i := range o.Add {
		parts = append(parts, "add "+name(m.cfg.Lives[i]))
	}
	for _, i := range o.Remove {
		parts = append(parts, "remove "+name(m.cfg.Lives[i]))
	}
	if o.Force {
		parts = append(parts, "by force")
	}
	if o.from > 0 {
		parts = append(parts, "moved from "+m.h.epochs[o.from].Region)
	}
	if len(parts) == 0 {
		return ""
	}
	return " to " + strings.Join(parts, ", ")
}

// effect tells what changed on disks.
func (m *model) effect(s, t *state) string {
	var parts []string
	for i, l := range t.lives[:len(m.cfg.Lives)] {
		old := s.lives[i]
		if l == old {
			continue
		}
		part := name(m.cfg.Lives[i]) + ":"
		if l.log != old.log {
			part += " " + m.h.text(l.log)
		}
		if l.promised != old.promised {
			part += " promised " + m.h.epochs[l.promised].String()
		}
		if l.confirmed != old.confirmed {
			part += fmt.Sprintf(" confirmed %d", l.confirmed)
		}
		if l.cut != old.cut {
			part += fmt.Sprintf(" quarantine %b", l.cut)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}
