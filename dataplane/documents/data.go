package documents

import (
	"reflect"
	"strings"

	"ringmain/dataplane/meter"
	"ringmain/dataplane/receipt"
)

// Field is one field that is kept of a request.
type Field struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	Description string `json:"description"`
}

// Data lists everything that is kept of a request.
type Data struct {
	Content  string  `json:"content"`
	Metadata []Field `json:"metadata_record"`
	Receipt  []Field `json:"receipt"`
}

const content = "Prompts, files and answers are not kept: no process that sees them can write a file, and no field below can hold them."

// receiptFields describes the fields of receipt.Facts that mean something else
// than in the metadata record, or are not there.
var receiptFields = map[string]string{
	"leaf":            "Id of the receipt in its node's batch, as in the idc-receipt header.",
	"attempts":        "Each provider or node that was asked: region, node, upstream, outcome; of another node, what it said of its confinement.",
	"confinement":     "What kept the process that signed, and saw the content, from writing files, as it measured itself.",
	"request_salt":    "Random bytes hashed before the request's body.",
	"request_sha256":  "SHA-256 of that salt and the request's body; zero if there is another hash of it, or no body was read.",
	"request_blake3":  "BLAKE3 of that salt and the request's body, if it is large.",
	"response_salt":   "Random bytes hashed before the answer's body.",
	"response_sha256": "SHA-256 of that salt and the answer's body; zero if there is another hash of it.",
	"response_blake3": "BLAKE3 of that salt and the answer's body, if it is large.",
	"response_bytes":  "How many bytes of an answer that was broken off had been written, which its hash is of.",
	"attestation":     "Reserved; nothing fills it yet.",
}

// dataKept lists the fields of the metadata record and of receipts.
func dataKept() Data {
	d := Data{Content: content}
	described := make(map[string]string)
	for _, f := range meter.Fields() {
		d.Metadata = append(d.Metadata, Field(f))
		described[f.Name] = f.Description
	}
	facts := reflect.TypeFor[receipt.Facts]()
	for i := range facts.NumField() {
		f := facts.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		description, ok := receiptFields[name]
		if !ok {
			description = described[name]
		}
		d.Receipt = append(d.Receipt, Field{Name: name, Type: kind(f.Type), Description: description})
	}
	return d
}

// kind names types as meter.Fields does.
func kind(t reflect.Type) string {
	switch t.Kind() { //nolint:exhaustive // the rest is not used
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "truth"
	case reflect.Int, reflect.Int64:
		return "number"
	case reflect.Array:
		return "bytes"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		return "list"
	default:
		return "object"
	}
}
