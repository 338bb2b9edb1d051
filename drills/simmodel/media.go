package simmodel

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"image"
	"image/color"
	"image/png"
	"math"
	"strings"

	"ringmain/drills/simmodel/wire"
)

// Dimensions of an embedding where the request asks for none, and at most.
const (
	defaultDimensions = 64
	maxDimensions     = 4096
)

// Embedding is the vector of text by model, of length 1. dimensions 0 = 64.
func Embedding(model, text string, dimensions int) []float32 {
	if dimensions <= 0 {
		dimensions = defaultDimensions
	}
	seed := binary.LittleEndian.Uint64(promptHash(model, []Message{{Role: "embed", Text: text}}))
	v := make([]float32, min(dimensions, maxDimensions))
	var sum float64
	for i := range v {
		x := float64(mix(seed+uint64(i))>>11)/(1<<52) - 1
		v[i] = float32(x)
		sum += x * x
	}
	for i := range v {
		v[i] = float32(float64(v[i]) / math.Sqrt(sum))
	}
	return v
}

func plainEmbeddings(c *call) (contentType string, body []byte) {
	c.Output, c.Prompt = 0, 0
	data := make([]wire.Object, len(c.messages))
	for i, m := range c.messages {
		c.Prompt += max(1, len(strings.Fields(m.Text)))
		v := Embedding(c.base, m.Text, c.size)
		data[i] = wire.Object{"object": "embedding", "index": i, "embedding": v}
		if c.base64 {
			var b []byte
			for _, x := range v {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
			}
			data[i]["embedding"] = base64.StdEncoding.EncodeToString(b)
		}
	}
	return "application/json", wire.MustJSON(wire.Object{"object": "list", "model": c.Model, "data": data,
		"usage": wire.Object{"prompt_tokens": c.Prompt, "total_tokens": c.Prompt}})
}

// sound is 8 KiB of bytes that are no text, ever the same for a prompt.
func sound(c *call) []byte {
	sum := sha256.Sum256(promptHash(c.base, c.messages))
	return append([]byte("\xff\xfb\x90\x00"), bytes.Repeat(sum[:], 256)...)
}

func plainSpeech(c *call) (contentType string, body []byte) { return "audio/mpeg", c.Media }

func plainTranscript(c *call) (contentType string, body []byte) {
	if c.format == "text" {
		return "text/plain; charset=utf-8", []byte(c.TextOf(wire.Text) + "\n")
	}
	return "application/json", wire.MustJSON(wire.Object{"text": c.TextOf(wire.Text), "usage": wire.Object{
		"type": "tokens", "input_tokens": c.Prompt, "output_tokens": c.Output, "total_tokens": c.Prompt + c.Output,
		"input_token_details": wire.Object{"text_tokens": 0, "audio_tokens": c.Prompt}}})
}

// picture is a PNG of 8 by 8 points.
func picture(c *call) []byte {
	points := promptHash(c.base, c.messages)
	img := image.NewGray(image.Rect(0, 0, 8, 8))
	for i := range 64 {
		img.SetGray(i%8, i/8, color.Gray{Y: points[i%len(points)]})
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		panic("simmodel: " + err.Error()) // a buffer takes every write
	}
	return b.Bytes()
}

func plainImages(c *call) (contentType string, body []byte) {
	return "application/json", wire.MustJSON(wire.Object{"created": c.Created,
		"data": []wire.Object{{"b64_json": base64.StdEncoding.EncodeToString(c.Media), "revised_prompt": c.messages[0].Text}},
		"usage": wire.Object{"input_tokens": c.Prompt, "output_tokens": c.Output, "total_tokens": c.Prompt + c.Output,
			"input_tokens_details": wire.Object{"text_tokens": c.Prompt, "image_tokens": 0}}})
}

// plainCount answers count_tokens.
func plainCount(c *call) (contentType string, body []byte) {
	return "application/json", wire.MustJSON(wire.Object{"input_tokens": c.Prompt})
}
