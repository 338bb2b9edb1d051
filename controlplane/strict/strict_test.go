package strict

import (
	"bytes"
	"encoding/hex"
	"testing"
)

type pair struct {
	A int            `cbor:"1,keyasint"`
	B map[string]int `cbor:"2,keyasint,omitempty"`
}

func TestOneForm(t *testing.T) {
	one, err := Marshal(pair{7, map[string]int{"b": 2, "a": 1, "aa": 3}})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // a map's own order changes from one walk to the next
		again, err := Marshal(pair{7, map[string]int{"aa": 3, "a": 1, "b": 2}})
		if err != nil || !bytes.Equal(one, again) {
			t.Fatalf("%x, then %x: %v", one, again, err)
		}
	}
	var read pair
	if err := Unmarshal(one, &read); err != nil || read.A != 7 || read.B["aa"] != 3 {
		t.Errorf("%+v, %v", read, err)
	}
}

func TestOtherFormsAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"an unknown field":     "a201070300",
		"a duplicate key":      "a201070108",
		"an indefinite length": "bf0107ff",
		"a tag":                "a101c107",
		"a trailing byte":      "a1010700",
		"a cut end":            "a101",
	} {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := Unmarshal(b, new(pair)); err == nil {
			t.Errorf("%s was read", name)
		}
	}
	for name, text := range map[string]string{
		"the one form":      "a10107",
		"a longer number":   "a1011807", // the same value: see the package comment
		"a longer key":      "a1180107",
		"keys out of order": "a202a0" + "0107",
	} {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		var read pair
		if err := Unmarshal(b, &read); err != nil || read.A != 7 {
			t.Errorf("%s: %+v, %v", name, read, err)
		}
	}
}

func TestBounds(t *testing.T) {
	b, err := Marshal(make([]int, 17))
	if err != nil {
		t.Fatal(err)
	}
	var read []int
	if err := Decoder(Bounds{Elements: 16}).Unmarshal(b, &read); err == nil {
		t.Error("an array beyond its bound was read")
	}
	if err := Decoder(Bounds{Elements: 17}).Unmarshal(b, &read); err != nil {
		t.Errorf("an array within its bound was refused: %v", err)
	}
}
