package request

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/textproto"
	"runtime"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ringmain/dataplane/dialect"
)

var transcriptions, _ = dialect.EndpointOf("/v1/audio/transcriptions")

const formType = `multipart/form-data; boundary="b-1"`

// formOf writes a form by hand: each part is head, empty line, value.
func formOf(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString("--b-1\r\n" + p + "\r\n")
	}
	return b.String() + "--b-1--\r\n"
}

func textPart(name, value string) string {
	return `Content-Disposition: form-data; name="` + name + `"` + "\r\n\r\n" + value
}

func TestScanFormTable(t *testing.T) {
	const model = "Content-Disposition: form-data; name=\"model\"\r\n\r\nwhisper"
	file := "Content-Disposition: form-data; name=\"file\"; filename=\"a\\\"b%22.wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n--b-0\r\n\x00\xff"
	many := make([]string, maxFormParts+1)
	for i := range many {
		many[i] = model
	}
	for _, c := range []struct {
		name, path, kind, body string
		say                    string // part of the refusal; "" = accepted
		stores                 string
	}{
		{"plain", "", formType, formOf(file, model), "", ""},
		{"unquoted, other case, spaces", "", "Multipart/Form-Data; charset=utf-8; BOUNDARY=b-1", formOf("content-disposition:  Form-Data ; Name=model ; x=y\r\n\r\nwhisper", file), "", ""},
		{"no line end at the close", "", formType, strings.TrimSuffix(formOf(model), "\r\n"), "", ""},
		{"two line ends at the close", "", formType, formOf(model, file) + "\r\n", "", ""}, // form-data-encoder, and with it openai-node 4
		{"parts that say they are not encoded", "", formType, formOf(file, "Content-Disposition: form-data; name=\"model\"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nwhisper",
			"Content-Disposition: form-data; name=\"x\"; filename=\"y\"\r\nContent-Length: 1\r\nContent-Transfer-Encoding: Binary\r\n\r\n\xff"), "", otherField}, // Apache's client 4, Symfony, Ruby's multipart-post
		{"model with a type", "", formType, formOf("Content-Disposition: form-data; name=\"model\"\r\nContent-Type: text/plain; charset=UTF-8\r\n\r\nwhisper"), "", ""},
		{"stream false", "", formType, formOf(model, textPart("stream", "False")), "", ""},
		{"other fields may repeat", "", formType, formOf(model, textPart("x[]", "1"), textPart("x[]", "2")), "", otherField},
		{"picture as a link", "/v1/images/edits", formType, formOf(model, textPart("response_format", "url")), "", "response_format"},
		{"picture in the answer", "/v1/images/edits", formType, formOf(model, textPart("response_format", "b64_json")), "", ""},
		{"transcript format is not storage", "", formType, formOf(model, textPart("response_format", "url")), "", ""},
		{"JSON instead", "/v1/images/edits", "application/json; charset=utf-8", `{"model":"whisper"}`, "", ""},

		{"no type", "", "", formOf(model), "multipart/form-data", ""},
		{"no boundary", "", "multipart/form-data", formOf(model), "boundary in the content type", ""},
		{"two boundaries", "", "multipart/form-data; boundary=b-1; boundary=b-2", formOf(model), "boundary", ""},
		{"boundary in two encodings", "", "multipart/form-data; boundary=x; boundary*=utf-8''b-1", formOf(model, textPart("f", "\r\n--x\r\n"+textPart("model", "other")+"\r\n--x--")), "boundary in the content type", ""},
		{"boundary in pieces", "", "multipart/form-data; boundary*0=b; boundary*1=-1", formOf(model), "boundary in the content type", ""},
		{"boundary escaped", "", `multipart/form-data; boundary="b\-1"`, formOf(model), "boundary in the content type", ""},
		{"odd boundary", "", `multipart/form-data; boundary="b 1"`, formOf(model), "boundary", ""},
		{"empty", "", formType, "", "not well formed", ""},
		{"preamble", "", formType, "x\r\n" + formOf(model), "not well formed", ""},
		{"epilogue", "", formType, formOf(model) + "x", "not well formed", ""},
		{"epilogue after line ends", "", formType, formOf(model) + "\r\n--b-1", "not well formed", ""},
		{"bare line feed at the close", "", formType, formOf(model) + "\n", "not well formed", ""},
		{"truncated", "", formType, formOf(model)[:40], "not well formed", ""},
		{"bare line feeds", "", formType, strings.ReplaceAll(formOf(model), "\r\n", "\n"), "boundary", ""},
		{"padding", "", formType, strings.Replace(formOf(model, file), "--b-1\r\n", "--b-1 \r\n", 1), "another boundary", ""},
		{"longer boundary inside", "", formType, formOf(model, textPart("x", "1\r\n--b-12\r\n")), "another boundary", ""},
		{"boundary after a line feed", "", formType, formOf(model, textPart("x", "1\n--b-1\r\n")), "another boundary", ""},
		{"boundary in a file", "", formType, formOf(model, textPart("x", "1--b-1")), "another boundary", ""},
		{"no model", "", formType, formOf(file), "`model` is missing", ""},
		{"model twice", "", formType, formOf(model, model), "given twice", ""},
		{"model in another case", "", formType, formOf(model, textPart("Model", "x")), "almost as `model` is", ""},
		{"model as a list", "", formType, formOf(model, textPart("model[]", "x")), "almost", ""},
		{"model with a space", "", formType, formOf(model, textPart("model ", "x")), "almost", ""},
		{"model as a file", "", formType, formOf("Content-Disposition: form-data; name=\"model\"; filename*0=x\r\n\r\nwhisper"), "plain text", ""},
		{"model empty", "", formType, formOf(textPart("model", "")), "`model` must be", ""},
		{"model with a line end", "", formType, formOf(textPart("model", "a\r\nb")), "plain text", ""},
		{"model not UTF-8", "", formType, formOf(textPart("model", "\xff")), "plain text", ""},
		{"model in another charset", "", formType, formOf("Content-Disposition: form-data; name=\"model\"\r\nContent-Type: text/plain; charset=utf-16\r\n\r\nwhisper"), "plain text", ""},
		{"model long", "", formType, formOf(textPart("model", strings.Repeat("m", MaxModelName+1))), "`model` must be", ""},
		{"charset for all", "", formType, formOf(model, textPart("_charset_", "utf-16")), "charset", ""},
		{"encoded part", "", formType, formOf(model, "Content-Disposition: form-data; name=\"x\"\r\nContent-Transfer-Encoding: base64\r\n\r\nbW9kZWw="), "head", ""},
		{"part encoded and not", "", formType, formOf(model, "Content-Disposition: form-data; name=\"x\"\r\nContent-Transfer-Encoding: binary\r\nContent-Transfer-Encoding: base64\r\n\r\nbW9kZWw="), "head", ""},
		{"part in an odd encoding", "", formType, formOf(model, "Content-Disposition: form-data; name=\"x\"\r\nContent-Transfer-Encoding: binary, base64\r\n\r\nbW9kZWw="), "head", ""},
		{"two dispositions", "", formType, formOf("Content-Disposition: form-data; name=\"x\"\r\n" + model), "head", ""},
		{"two names", "", formType, formOf(`Content-Disposition: form-data; name="x"; name="model"` + "\r\n\r\nw"), "head", ""},
		{"name in another encoding", "", formType, formOf(`Content-Disposition: form-data; name="x"; name*=utf-8''model` + "\r\n\r\nw"), "head", ""},
		{"name escaped", "", formType, formOf(`Content-Disposition: form-data; name="mo\del"` + "\r\n\r\nw"), "head", ""},
		{"folded line", "", formType, formOf("Content-Disposition: form-data;\r\n name=\"model\"\r\n\r\nw"), "head", ""},
		{"no disposition", "", formType, formOf("Content-Type: text/plain\r\n\r\nw"), "head", ""},
		{"attachment", "", formType, formOf("Content-Disposition: attachment; name=\"model\"\r\n\r\nw"), "head", ""},
		{"no empty line", "", formType, formOf("Content-Disposition: form-data; name=\"model\""), "head", ""},
		{"stream", "", formType, formOf(model, textPart("stream", "true")), "", ""},
		{"stream, where there is none", "/v1/audio/translations", formType, formOf(model, textPart("stream", "true")), "not as a stream", ""},
		{"further models", "", formType, formOf(model, textPart("models[]", "x")), "further models", ""},
		{"fallbacks", "", formType, formOf(textPart("Fallbacks", "x"), model), "further models", ""},
		{"another party", "/v1/images/edits", formType, formOf(model, textPart("provider[only][]", "x")), "", "provider"},
		{"stream twice", "", formType, formOf(model, textPart("stream", "true"), textPart("stream", "true")), "given twice", ""},
		{"stream of another kind", "", formType, formOf(model, textPart("stream", "1")), "true or false", ""},
		{"too many parts", "", formType, formOf(many...), "given twice", ""},
	} {
		path := c.path
		if path == "" {
			path = "/v1/audio/transcriptions"
		}
		q, fail := Scan(served(t, path), c.kind, []byte(c.body))
		switch {
		case c.say == "" && fail != nil:
			t.Errorf("%s: %v", c.name, fail)
		case c.say != "" && (fail == nil || !strings.Contains(fail.Message, c.say) || fail.Code != dialect.InvalidRequest):
			t.Errorf("%s: %v", c.name, fail)
		case fail == nil && q.ContentType(c.kind) != map[bool]string{true: c.kind, false: "application/json"}[c.body[0] != '{']:
			t.Errorf("%s: goes up as %s", c.name, q.ContentType(c.kind))
		case fail == nil && (q.Model != "whisper" || q.Stores != c.stores || q.Stream != (c.name == "stream")):
			t.Errorf("%s: model %q, stores %q, stream %t", c.name, q.Model, q.Stores, q.Stream)
		}
	}
	for i := range many {
		many[i] = textPart("x", "")
	}
	if _, fail := Scan(served(t, "/v1/images/edits"), formType, []byte(formOf(many...))); fail != errFormParts {
		t.Errorf("%d parts: %v", len(many), fail)
	}
}

// readForm is the twin: mime/multipart, which is lenient.
func readForm(kind string, body []byte) (parts []string, models []string, err error) {
	_, params, err := mime.ParseMediaType(kind)
	if err != nil {
		return nil, nil, err
	}
	r := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		p, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			return parts, models, nil
		}
		if err != nil {
			return nil, nil, err
		}
		v, err := io.ReadAll(p)
		if err != nil {
			return nil, nil, err
		}
		if strings.EqualFold(p.FormName(), "model") {
			models = append(models, string(v))
			v = nil
		}
		parts = append(parts, fmt.Sprintf("%q %q", p.Header, v))
	}
}

func checkForm(t interface{ Fatalf(string, ...any) }, kind string, body []byte, q *Request) {
	parts, models, err := readForm(kind, body)
	if err != nil || len(models) != 1 || models[0] != q.Model {
		t.Fatalf("%q accepted with model %q; mime/multipart reads %q, %v", body, q.Model, models, err)
	}
	same := q.Upstream(body, q.Model, Rewriting{ZeroRetention: true})
	if !bytes.Equal(same.Append(nil), body) {
		t.Fatalf("%q changed", body)
	}
	const other = "whisper \"large\""
	changed := q.Upstream(body, other, Rewriting{})
	out := changed.Append(nil)
	again, models, err := readForm(kind, out)
	if err != nil || len(models) != 1 || models[0] != other || fmt.Sprint(again) != fmt.Sprint(parts) {
		t.Fatalf("%q became %q: %v", body, out, err)
	}
	if want := string(body[:q.modelAt.Start]) + other + string(body[q.modelAt.End:]); string(out) != want {
		t.Fatalf("%q became %q", body, out)
	}
}

// TestFormTwin draws forms that a client's library would write.
func TestFormTwin(t *testing.T) {
	text := rapid.StringOfN(rapid.RuneFrom([]rune("ab-\r\n\"; =é\x00")), 0, 12, -1)
	rapid.Check(t, func(t *rapid.T) {
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		names := rapid.Permutation(append([]string{"model"}, rapid.SliceOfN(rapid.SampledFrom([]string{"file", "prompt", "language", "image[]"}), 0, 4).Draw(t, "names")...)).Draw(t, "order")
		model := rapid.StringMatching(`[a-zA-Z0-9./ é"\\-]{1,20}`).Draw(t, "model")
		for _, name := range names {
			head := textproto.MIMEHeader{"Content-Disposition": {fmt.Sprintf("form-data; name=%q", name)}}
			value := model
			if name != "model" {
				value = text.Draw(t, "value")
				if rapid.Bool().Draw(t, "file") {
					head.Set("Content-Disposition", head.Get("Content-Disposition")+`; filename="x.bin"`)
					head.Set("Content-Type", "application/octet-stream")
				}
			}
			p, err := w.CreatePart(head)
			if err != nil {
				t.Fatalf("%v", err)
			}
			if _, err = io.WriteString(p, value); err != nil {
				t.Fatalf("%v", err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatalf("%v", err)
		}
		q, fail := Scan(transcriptions, w.FormDataContentType(), body.Bytes())
		if fail != nil {
			t.Fatalf("%q: %v", body.Bytes(), fail)
		}
		checkForm(t, w.FormDataContentType(), body.Bytes(), &q)
	})
}

// FuzzScanForm: whatever is accepted, a lenient reader sees the same in it.
func FuzzScanForm(f *testing.F) {
	model := textPart("model", "m")
	for _, s := range []string{
		formOf(model), formOf(textPart("x", "--b-1"), model), formOf(model, textPart("x", "\n--b-1\n"+model)), "--b-1\r\n" + model + "\r\n--b-1--",
		formOf("Content-Disposition: form-data; filename=\"a;name=b\"; name=\"model\"\r\n\r\nm"), formOf("content-disposition:form-data;name=model\r\n\r\nm"),
		formOf("Content-Disposition: form-data; name=\"model\"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nm"),
		formOf(model, "Content-Disposition: form-data; name=\"y\"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=41"),
		formOf(model) + "\r\n", formOf(model, "Content-Disposition: form-data; name=\"y\"\r\nContent-Transfer-Encoding: binary\r\n\r\n=41"),
	} {
		f.Add([]byte(s))
	}
	ep, _ := dialect.EndpointOf("/v1/audio/transcriptions")
	f.Fuzz(func(t *testing.T, body []byte) {
		if q, fail := Scan(ep, formType, body); fail == nil {
			checkForm(t, formType, body, &q)
		}
	})
}

// TestFormIsNotCopied: a large file costs no memory of its own.
func TestFormIsNotCopied(t *testing.T) {
	file := "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n" + strings.Repeat("sound", 1<<18)
	body := []byte(formOf(textPart("model", "whisper"), file))
	ep := served(t, "/v1/audio/transcriptions")
	const rounds = 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		q, fail := Scan(ep, formType, body)
		if fail != nil {
			t.Fatal(fail)
		}
		if out := q.Upstream(body, "other", Rewriting{}); out.Len() != int64(len(body)-2) {
			t.Fatal(out.Len())
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / rounds; each > 4<<10 {
		t.Errorf("%d bytes allocated for a form of %d", each, len(body))
	}
}
