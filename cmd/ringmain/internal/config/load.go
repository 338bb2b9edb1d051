package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// Load reads file strictly (an unknown field is an error with its line), lays
// environment variables RINGMAIN_<PATH> (such as RINGMAIN_LISTEN_API) over its
// scalar fields, and validates the result.
func Load(file string, environ []string) (*Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c := new(Config)
	if err := yaml.UnmarshalWithOptions(b, c, yaml.Strict()); err != nil {
		if at := wrongDuration(b); at != nil { // the library names no place for these
			return nil, fmt.Errorf("configuration %s: %w", file, locate(b, at))
		}
		return nil, fmt.Errorf("configuration %s:\n%s", file, Plain(yaml.FormatError(err, false, true)))
	}
	if err := overlay(reflect.ValueOf(c).Elem(), "RINGMAIN", environ); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		var fe *FieldError
		if errors.As(err, &fe) {
			if name := variable(fe.Field); name != "" {
				if _, set := lookup(environ, name); set {
					return nil, fmt.Errorf("environment %s: %w", name, err)
				}
			}
		}
		return nil, fmt.Errorf("configuration %s: %w", file, locate(b, err))
	}
	c.load = func() (*Config, error) { return Load(file, environ) }
	return c, nil
}

// Locate adds to err, which names a field of the configuration in file, the
// field's line; without one it gives err as it is.
func Locate(file string, err error) error {
	b, readErr := os.ReadFile(file)
	if readErr != nil {
		return err
	}
	return locate(b, err)
}

// variable is the environment variable that sets a scalar field; "" for a field in a list.
func variable(field string) string {
	if strings.Contains(field, "[") {
		return ""
	}
	return "RINGMAIN_" + strings.ToUpper(strings.ReplaceAll(field, ".", "_"))
}

// durations names the fields of t that are durations, those of structs in it too.
func durations(prefix string, t reflect.Type) (fields []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		switch name := prefix + f.Tag.Get("yaml"); {
		case f.Type == reflect.TypeFor[time.Duration]():
			fields = append(fields, name)
		case f.Type.Kind() == reflect.Struct:
			fields = append(fields, durations(name+".", f.Type)...)
		}
	}
	return fields
}

// wrongDuration finds the first duration in file that is none.
func wrongDuration(file []byte) error {
	for _, field := range append(durations("tunables.", reflect.TypeFor[Tunables]()), slices.Concat(durations("takeover.", reflect.TypeFor[Takeover]()), durations("raft.", reflect.TypeFor[Raft]()))...) {
		path, err := yaml.PathString("$." + field)
		if err != nil {
			continue
		}
		node, err := path.ReadNode(strings.NewReader(string(file)))
		if err != nil || node.GetToken() == nil {
			continue
		}
		if _, err := time.ParseDuration(node.GetToken().Value); err != nil {
			return bad(field, "want a duration such as 30s or 24h, got %q", node.GetToken().Value)
		}
	}
	return nil
}

var wrongType = regexp.MustCompile(`cannot unmarshal (\S+) into Go (?:struct field \S+|value) of type (\S+)(?: \( overflow \))?`)

// Plain turns the YAML library's words about Go types into plain ones.
func Plain(text string) string {
	return wrongType.ReplaceAllStringFunc(text, func(m string) string {
		switch kind := wrongType.FindStringSubmatch(m)[2]; {
		case strings.HasPrefix(kind, "uint"):
			return "want a whole number, 0 or more"
		case strings.HasPrefix(kind, "int"):
			return "want a whole number"
		case kind == "bool":
			return "want true or false"
		case kind == "time.Duration":
			return "want a duration such as 30s or 24h"
		case kind == "time.Time":
			return "want a date and time such as 2027-06-30T00:00:00Z"
		case kind == "string":
			return "want text"
		}
		return m
	})
}

// overlay sets scalar fields from environment variables.
func overlay(v reflect.Value, prefix string, environ []string) error {
	for i := range v.NumField() {
		name := prefix + "_" + strings.ToUpper(v.Type().Field(i).Tag.Get("yaml"))
		f := v.Field(i)
		if !f.CanSet() {
			continue
		}
		if f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[time.Time]() {
			if err := overlay(f, name, environ); err != nil {
				return err
			}
			continue
		}
		text, ok := lookup(environ, name)
		if !ok {
			continue
		}
		switch {
		case f.Type() == reflect.TypeFor[time.Duration]():
			d, err := time.ParseDuration(text)
			if err != nil {
				return fmt.Errorf("environment %s: %w", name, err)
			}
			f.SetInt(int64(d))
		case f.Kind() == reflect.String:
			f.SetString(text)
		case f.CanUint():
			n, err := strconv.ParseUint(text, 10, f.Type().Bits())
			if err != nil {
				return fmt.Errorf("environment %s: %w", name, err)
			}
			f.SetUint(n)
		default:
			return fmt.Errorf("environment %s: this field can only be set in the file", name)
		}
	}
	return nil
}

func lookup(environ []string, name string) (string, bool) {
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

// FieldError names the field that is wrong.
type FieldError struct{ Field, Message string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Message }

func bad(field, format string, args ...any) error {
	return &FieldError{Field: field, Message: fmt.Sprintf(format, args...)}
}

// locate adds the line of the wrong field's last named part, when the file has it.
func locate(file []byte, err error) error {
	var fe *FieldError
	if !errors.As(err, &fe) {
		return err
	}
	path := "$." + fe.Field
	for path != "$" {
		if p, perr := yaml.PathString(path); perr == nil {
			if node, nerr := p.ReadNode(strings.NewReader(string(file))); nerr == nil && node.GetToken() != nil {
				return fmt.Errorf("line %d: %w", node.GetToken().Position.Line, err)
			}
		}
		if i := strings.LastIndexAny(path, ".["); i > 0 {
			path = path[:i]
		} else {
			break
		}
	}
	return err
}

// ReadKey reads a file of 32 base64-encoded bytes, which a field names.
func ReadKey(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("%s: want 32 bytes in base64", path)
	}
	return key, nil
}
