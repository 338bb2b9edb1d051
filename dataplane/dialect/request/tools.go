package request

import (
	"strings"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// toolClass says who runs a tool.
type toolClass uint8

const (
	toolClient   toolClass = iota + 1 // the client: the provider only asks for it
	toolProvider                      // the provider, which keeps nothing for it
	toolKeeping                       // the provider, which keeps something for it
	toolShell                         // as the environment it names
	toolSearch                        // as its execution says
	toolGroup                         // as the tools inside it
)

// tool is one row of the table of tools, by the type they are declared with. A
// type that is not in the table is taken for one that runs at the provider and
// keeps something there.
type tool struct {
	dialect dialect.Dialect
	name    string // a name that ends in _ stands for every version: name, then a date
	class   toolClass
}

// Types of both APIs as of November 2026: openai-go v3.96 (responses.ToolUnionParam),
// anthropic-sdk-go v1.84 (BetaToolUnionParam). What keeps something: see Storage.
var toolTable = [...]tool{
	{dialect.OpenAI, "function", toolClient},
	{dialect.OpenAI, "custom", toolClient},
	{dialect.OpenAI, "namespace", toolGroup},
	{dialect.OpenAI, "tool_search", toolSearch},
	{dialect.OpenAI, "local_shell", toolClient},
	{dialect.OpenAI, "apply_patch", toolClient},
	{dialect.OpenAI, "computer", toolClient},
	{dialect.OpenAI, "computer_use_preview", toolClient},
	{dialect.OpenAI, "shell", toolShell},
	{dialect.OpenAI, "web_search", toolProvider},
	{dialect.OpenAI, "web_search_2025_08_26", toolProvider},
	{dialect.OpenAI, "web_search_preview", toolProvider},
	{dialect.OpenAI, "web_search_preview_2025_03_11", toolProvider},
	{dialect.OpenAI, "image_generation", toolProvider},
	{dialect.OpenAI, "file_search", toolKeeping},
	{dialect.OpenAI, "code_interpreter", toolKeeping},
	{dialect.OpenAI, "programmatic_tool_calling", toolKeeping},
	{dialect.OpenAI, "mcp", toolKeeping},

	{dialect.Anthropic, "custom", toolClient},
	{dialect.Anthropic, "bash_", toolClient},
	{dialect.Anthropic, "text_editor_", toolClient},
	{dialect.Anthropic, "computer_", toolClient},
	{dialect.Anthropic, "computer_toolset_", toolClient},
	{dialect.Anthropic, "browser_toolset_", toolClient},
	{dialect.Anthropic, "memory_", toolClient},
	{dialect.Anthropic, "web_search_20250305", toolProvider},
	{dialect.Anthropic, "web_fetch_20250910", toolProvider},
	{dialect.Anthropic, "advisor_", toolProvider},
	{dialect.Anthropic, "tool_search_tool_bm25", toolProvider},
	{dialect.Anthropic, "tool_search_tool_bm25_", toolProvider},
	{dialect.Anthropic, "tool_search_tool_regex", toolProvider},
	{dialect.Anthropic, "tool_search_tool_regex_", toolProvider},
	{dialect.Anthropic, "web_search_", toolKeeping}, // later versions filter in a container
	{dialect.Anthropic, "web_fetch_", toolKeeping},
	{dialect.Anthropic, "code_execution_", toolKeeping},
	{dialect.Anthropic, "mcp_toolset", toolKeeping},
}

// unknownTool stands for every type that is not in the table.
const unknownTool = "unknown"

// toolOf finds the row of a declared type. The name is the table's own.
func toolOf(d dialect.Dialect, declared []byte) (class toolClass, name string) {
	for i := range toolTable {
		t := &toolTable[i]
		if t.dialect == d && (string(declared) == t.name || t.versions(declared)) {
			return t.class, t.name
		}
	}
	return toolKeeping, unknownTool
}

// versions reports whether declared is a dated version of t.
func (t *tool) versions(declared []byte) bool {
	if !strings.HasSuffix(t.name, "_") || len(declared) != len(t.name)+len("20060102") || string(declared[:len(t.name)]) != t.name {
		return false
	}
	return isInteger(declared[len(t.name):])
}

// toolField gives the field of the Storage table that a tool's use is told by.
func toolField(name string) string {
	for i := range storageTable {
		if storageTable[i].tool == name {
			return storageTable[i].Field
		}
	}
	return "tools: " + unknownTool
}

// tools takes an array of tool definitions.
func (s *scan) tools() {
	if s.Peek() != '[' {
		if !s.IsNull() {
			s.oneTool(toolKeeping, unknownTool)
		}
		s.Value()
		return
	}
	s.Array(func() { s.tool() })
}

// tool takes one tool definition. A field given twice counts with each value,
// so that it does not matter which one the provider reads.
func (s *scan) tool() {
	if s.Peek() != '{' {
		s.oneTool(toolKeeping, unknownTool)
		s.Value()
		return
	}
	typed, local, hosted, client, server := false, false, false, false, false
	shell, search := false, false
	s.Object(func(key []byte) {
		switch {
		case is(key, "type"):
			if s.IsNull() {
				s.Value()
				return
			}
			declared, _ := s.Text() // none = a type that nobody knows
			typed = true
			class, name := toolOf(s.q.Dialect, declared)
			shell, search = shell || class == toolShell, search || class == toolSearch
			if name == unknownTool { // whom it asks is as little known as what it keeps
				s.away(toolField(name))
			}
			s.oneTool(class, name)
		case is(key, "environment"):
			exact := string(key) == "environment"
			s.ObjectOr(func(key []byte) {
				if !is(key, "type") {
					s.member(key)
					return
				}
				exact := exact && string(key) == "type" // who reads no other case finds nothing that says local
				v, _ := s.Text()
				local, hosted = local || exact && string(v) == "local", hosted || string(v) != "local"
			})
		case is(key, "execution"):
			exact := string(key) == "execution"
			v, _ := s.Text()
			client, server = client || exact && string(v) == "client", server || string(v) != "client"
		case is(key, "model"): // of an advisor, a painter: it would answer too
			if !s.IsNull() {
				s.refuse(dialect.InvalidRequest, "tools", "A tool of the request names a model of its own, which would answer unseen by policy and record: leave the tool, or its `model`, out.")
			}
			s.Value()
		default:
			s.member(key)
		}
	})
	switch {
	case !typed && s.q.Dialect == dialect.OpenAI:
		s.oneTool(toolKeeping, unknownTool)
	case shell && (hosted || !local):
		s.oneTool(toolKeeping, "shell")
	}
	if search && (server || !client) {
		s.oneTool(toolProvider, "")
	}
}

// oneTool notes what a tool of that class means for the request.
func (s *scan) oneTool(class toolClass, name string) {
	switch class {
	case toolProvider:
		s.q.ProviderTools = true
	case toolKeeping:
		s.q.ProviderTools = true
		s.stores(toolField(name))
		if name == "mcp" || name == "mcp_toolset" {
			s.away(toolField(name))
		}
	}
}

// is reports whether key is name in any case.
func is(key []byte, name string) bool {
	return string(key) == name || !jsontext.LowerASCII(key) && jsontext.FoldsTo(key, name)
}
