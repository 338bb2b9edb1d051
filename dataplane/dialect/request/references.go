package request

import (
	"bytes"

	"ringmain/dataplane/dialect/jsontext"
)

// references takes a value of messages, input or the like, and looks for what
// refers to things kept at the provider.
func (s *scan) references() {
	switch s.Peek() {
	case '{':
		s.Object(func(key []byte) { s.member(key) })
	case '[':
		s.Array(func() { s.references() })
	default:
		s.Value()
	}
}

// member takes the value of one nested field, key.
func (s *scan) member(key []byte) {
	if !jsontext.LowerASCII(key) {
		s.foldedMember(key)
		return
	}
	switch string(key) {
	case "file_id", "file_ids", "vector_store_ids", "container_id":
		s.id("file_id")
	case "tunnel_id":
		s.away("tunnel_id")
		s.id("tunnel_id")
	case "skill_id", "cached_content":
		s.id(nestedName(key))
	case "container": // an id, or how to make a new one
		if !s.IsNull() {
			s.stores("file_id")
		}
		if s.Peek() == '{' {
			s.references()
		} else {
			s.id("file_id")
		}
	case "audio":
		s.ownID("audio.id")
	case "voice":
		s.ownID("voice.id")
	case "type":
		switch v, _ := s.Text(); string(v) {
		case "item_reference":
			s.kept("item_reference")
		case "container_upload":
			s.kept("file_id")
		}
	case "cache_control", "caching":
		s.cacheControl()
	case "network_policy":
		s.network()
	case "tools":
		s.tools()
	case "definition":
		if s.Peek() == '{' {
			s.tool()
		} else {
			s.references()
		}
	case "input", "parameters", "input_schema", "schema", "arguments", "input_examples", "metadata":
		s.Value() // the client's own structures, which may use any name
	default:
		s.references()
	}
}

var nestedNames = [...]string{
	"file_id", "file_ids", "vector_store_ids", "container", "container_id", "type", "cache_control", "caching", "tools", "definition",
	"skill_id", "tunnel_id", "cached_content", "audio", "voice", "network_policy",
}

// nestedName is key as a constant.
func nestedName(key []byte) string {
	for _, name := range nestedNames {
		if string(key) == name {
			return name
		}
	}
	return ""
}

// something takes a value and reports whether it is neither null nor empty.
func (s *scan) something() bool { return !hollow(s.Span().Of(s.Data)) }

// hollow reports whether v, a JSON value, is null or empty.
func hollow(v []byte) bool {
	if len(v) >= 2 && (v[0] == '[' || v[0] == '{') {
		return len(bytes.TrimSpace(v[1:len(v)-1])) == 0
	}
	return string(v) == "null" || string(v) == `""`
}

// id takes a value that names something kept.
func (s *scan) id(what string) {
	if !s.IsNull() {
		s.stores(what)
	}
	if s.something() {
		s.kept(what)
	}
}

// ownID takes an object that may be named by its id alone.
func (s *scan) ownID(what string) {
	if s.Peek() != '{' {
		s.references()
		return
	}
	s.Object(func(key []byte) {
		if is(key, "id") {
			s.id(what)
		} else {
			s.member(key)
		}
	})
}

// items takes the input of a response.
func (s *scan) items() {
	if s.Peek() != '[' {
		s.references()
		return
	}
	s.Array(func() {
		if s.Peek() == '{' {
			s.item()
		} else {
			s.references()
		}
	})
}

// What an input item may have once.
const (
	itemID = 1 << iota
	itemType
	itemRole
	itemContent
	itemEncrypted
	itemResult
)

// item takes one input item. One that gives its id, and not what it stands for,
// has the provider look it up: a reference, whose type may be left out, but
// also reasoning or a picture without its content. What is given twice may be
// read either way.
func (s *scan) item() {
	seen, named, typed, role, carries, twice := 0, false, false, false, false, false
	s.Object(func(key []byte) {
		field := 0
		switch {
		case is(key, "id"):
			field = itemID
			named = s.something() || named
		case is(key, "type"):
			field = itemType
			typed = s.Peek() == '"'
			s.member(key)
		case is(key, "role"):
			field = itemRole
			role = s.something()
		case is(key, "status"), is(key, "summary"): // of what is kept
			s.Value()
		default:
			switch {
			case is(key, "content"):
				field = itemContent
			case is(key, "encrypted_content"):
				field = itemEncrypted
			case is(key, "result"):
				field = itemResult
			}
			s.Space()
			from := s.At
			s.member(key)
			carries = carries || !hollow(s.Data[from:s.At])
		}
		twice = twice || seen&field != 0
		seen |= field
	})
	if named && (twice || !role && (!typed || !carries)) {
		s.kept("item_reference")
	}
}

// extraBody takes what Google's OpenAI endpoint reads beside the fields of OpenAI's.
func (s *scan) extraBody() {
	s.ObjectOr(func(key []byte) {
		if string(key) != "google" {
			s.q.unlisted(s.nth)
			s.references()
			return
		}
		s.ObjectOr(func(key []byte) {
			if string(key) != "thinking_config" && !is(key, "cached_content") {
				s.q.unlisted(s.nth)
			}
			s.member(key)
		})
	})
}

// container takes Anthropic's container: the id of one, or what a new one is to
// hold. Skills are the provider's, or kept in its account.
func (s *scan) container() {
	if s.Peek() != '{' {
		s.id("container")
		return
	}
	s.stores("container")
	s.Object(func(key []byte) {
		switch {
		case is(key, "id"):
			s.id("container")
		case is(key, "skills") && s.Peek() == '[':
			s.Array(func() {
				theirs, ours := false, false
				s.ObjectOr(func(key []byte) {
					if !is(key, "type") {
						s.Value()
						return
					}
					v, _ := s.Text()
					theirs, ours = theirs || string(v) == "anthropic", ours || string(v) != "anthropic"
				})
				if ours || !theirs {
					s.kept("skill_id")
				}
			})
		default:
			s.Value()
		}
	})
}

// foldedMember reads a key in another case as the name it folds to: some
// providers do.
func (s *scan) foldedMember(key []byte) {
	for _, name := range nestedNames {
		if jsontext.FoldsTo(key, name) {
			s.member([]byte(name))
			return
		}
	}
	s.references()
}

// cacheControl takes Anthropic's cache_control.
func (s *scan) cacheControl() {
	s.ObjectOr(func(key []byte) {
		if !is(key, "ttl") {
			s.Value()
			return
		}
		s.life("5m", "cache_control.ttl")
	})
}

// life takes how long a cache is to last, and notes any but the shortest.
func (s *scan) life(shortest, what string) {
	if s.IsNull() {
		s.Value()
	} else if v, _ := s.Text(); string(v) != shortest {
		s.stores(what)
	}
}

// network takes what code in a container may reach: nothing, unless it says so.
func (s *scan) network() {
	none, some := s.IsNull(), false
	s.ObjectOr(func(key []byte) {
		if !is(key, "type") {
			s.member(key)
			return
		}
		v, _ := s.Text()
		none, some = none || string(key) == "type" && string(v) == "disabled", some || string(v) != "disabled"
	})
	if some || !none {
		s.away("network_policy")
	}
}

// gateways takes what is for gateways that are upstreams, by their names. Some let
// a request name models to answer in the place of its own.
func (s *scan) gateways() {
	s.ObjectOr(func([]byte) {
		s.ObjectOr(func(key []byte) {
			if some := s.something(); some && string(key) == fModels.name() && s.refused == nil {
				s.refused = furtherModels(fModels)
			}
		})
	})
}

// storing takes the value of a field that may ask the provider to keep something.
func (s *scan) storing(f fieldSet) {
	switch f {
	case fBackground, fDeferred:
		if v := s.Span().Of(s.Data); string(v) != "false" && string(v) != "null" {
			s.kept(f.name())
		}
	case fDataSources, fTransfer, fBootstrap:
		if !s.IsNull() {
			s.away(f.name())
		}
		s.id(f.name())
	case fProvider, fPlugins:
		if !s.IsNull() {
			s.stores(f.name())
			s.away(f.name())
		}
		s.Value()
	case fProviderOptions:
		if !s.IsNull() {
			s.stores(f.name())
			s.away(f.name())
		}
		s.gateways()
	case fPrevious, fConversation, fStorageOptions, fSession:
		s.id(f.name())
	case fContainer:
		s.container()
	case fAudio:
		if !s.IsNull() {
			s.stores(f.name())
		}
		s.references()
	case fVoice:
		s.ownID("voice.id")
	case fDiagnostics:
		if !s.IsNull() {
			s.stores(f.name())
		}
		s.ObjectOr(func(key []byte) {
			if is(key, "previous_message_id") {
				s.id(f.name())
			} else {
				s.Value()
			}
		})
	case fRetention:
		if s.IsNull() {
			s.Value()
		} else if v, _ := s.Text(); string(v) != "in_memory" && string(v) != "in-memory" {
			s.stores(f.name())
		}
	case fCacheOptions:
		s.ObjectOr(func(key []byte) {
			switch {
			case is(key, "ttl"):
				s.life("30m", "prompt_cache_options.ttl")
			case is(key, "comparison_response_id"):
				s.id("prompt_cache_options.comparison_response_id")
			default:
				s.Value()
			}
		})
	case fMCP:
		if !s.IsNull() {
			s.q.ProviderTools = true
			s.stores(f.name())
			s.away(f.name())
		}
		s.Value()
	case fCacheControl:
		s.cacheControl()
	case fResponseFormat:
		s.Space()
		start, unset := s.At, s.IsNull()
		v, _ := s.Text()
		s.q.formatAt = jsontext.Span{Start: start, End: s.At}
		if s.q.inline = string(v) == inlineFormat; !s.q.inline && !unset {
			s.stores(f.name())
		}
	default: // an id of something kept, or a demand to keep it
		if !s.IsNull() {
			s.stores(f.name())
		}
		s.Value()
	}
}
