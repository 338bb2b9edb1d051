package dataplane_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"ringmain/dataplane/dialect"
)

func TestMain(m *testing.M) {
	if roots := os.Getenv(childVariable); roots != "" {
		if err := runChild(roots); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(codesToo{m})
}

// codesToo also asks, after a run of all tests, that each code which this room
// can answer with was seen on the wire.
type codesToo struct{ m *testing.M }

// later lists the codes whose rooms are not built yet; dialect's own tests
// render them.
var later = map[dialect.Code]bool{
	dialect.SourceNotAllowed:    true, // key restrictions
	dialect.PlanRequired:        true, // management
	dialect.ProviderKeyRejected: true, // customers' own provider keys
	dialect.InsufficientQuota:   true, // allowance
}

func (c codesToo) Run() int {
	status := c.m.Run()
	if status != 0 || flag.Lookup("test.run").Value.String() != "" || flag.Lookup("test.skip").Value.String() != "" ||
		flag.Lookup("test.bench").Value.String() != "" || flag.Lookup("test.list").Value.String() != "" {
		return status
	}
	for _, code := range dialect.Codes() {
		if seenCodes.seen[code] == later[code] {
			fmt.Printf("code %s: seen on the wire %t\n", code, seenCodes.seen[code])
			status = 1
		}
	}
	return status
}
