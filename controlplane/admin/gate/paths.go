package gate

// Paths are exported because huma fills exported fields only.

// OrgPath names an org in a path.
type OrgPath struct {
	Org string `path:"org" doc:"Id of the org"`
}

// ProjectPath names a project in a path.
type ProjectPath struct {
	Project string `path:"project" doc:"Id of the project"`
}

// KeyPath names a key in a path.
type KeyPath struct {
	Key string `path:"key" doc:"Id of the key's record: key_..."`
}
