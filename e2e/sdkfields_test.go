package e2e

import (
	"reflect"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/responses"

	"ringmain/dataplane/dialect"
	fields "ringmain/dataplane/dialect/request"
)

// TestOfficialFieldsAreKnown: every field that the official clients of this
// build can send is read by the scan or listed as harmless. A newer client that
// knows more fails here: look at what the new field keeps, then list it.
func TestOfficialFieldsAreKnown(t *testing.T) {
	const formType = "multipart/form-data; boundary=b"
	for path, params := range map[string][]any{
		"/v1/chat/completions":      {openai.ChatCompletionNewParams{}},
		"/v1/completions":           {openai.CompletionNewParams{}},
		"/v1/responses":             {responses.ResponseNewParams{}},
		"/v1/embeddings":            {openai.EmbeddingNewParams{}},
		"/v1/audio/speech":          {openai.AudioSpeechNewParams{}},
		"/v1/audio/transcriptions":  {openai.AudioTranscriptionNewParams{}},
		"/v1/audio/translations":    {openai.AudioTranslationNewParams{}},
		"/v1/images/generations":    {openai.ImageGenerateParams{}},
		"/v1/images/edits":          {openai.ImageEditParams{}},
		"/v1/images/variations":     {openai.ImageNewVariationParams{}},
		"/v1/messages":              {anthropic.MessageNewParams{}, anthropic.BetaMessageNewParams{}},
		"/v1/messages/count_tokens": {anthropic.MessageCountTokensParams{}, anthropic.BetaMessageCountTokensParams{}},
	} {
		ep, ok := dialect.EndpointOf(path)
		if !ok {
			t.Fatal(path)
		}
		for _, p := range params {
			listed := 0
			for _, f := range reflect.VisibleFields(reflect.TypeOf(p)) {
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name == "" || name == "-" || name == "model" {
					continue
				}
				listed++
				kinds := map[string]string{"application/json": `{"model":"m","` + name + `":null}`}
				form := "--b\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--b\r\nContent-Disposition: form-data; name=" + name + "\r\n\r\n\r\n--b--"
				switch ep.Body {
				case dialect.BodyMultipart:
					kinds = map[string]string{formType: form}
				case dialect.BodyEither:
					kinds[formType] = form
				}
				for kind, body := range kinds {
					if q, fail := fields.Scan(ep, kind, []byte(body)); fail != nil || q.Unlisted != 0 {
						t.Errorf("%s as %s: the client's %s is not known: %v", path, kind, name, fail)
					}
				}
			}
			if listed < 4 {
				t.Errorf("%T has %d fields", p, listed)
			}
		}
	}
}
