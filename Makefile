# ringmain: `make run` shows it, `make test` checks it, `make verify` is the door.
SHELL := /bin/bash
GO    ?= go
BIN   := bin
LINT  := $(BIN)/golangci-lint
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
DEVFLAGS := $(if $(FRESH),--fresh) $(if $(REGIONS),--regions $(REGIONS)) $(if $(DIR),--dir $(DIR))

.PHONY: help build run test verify fmt vet lint layering race bench soak e2e clean

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

build: ## bin/ringmain and bin/drills
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/ringmain ./cmd/drills

run: build ## three regions on this machine (FRESH=1 starts anew)
	@exec $(BIN)/ringmain dev $(DEVFLAGS)

test: ## every test that needs nothing but Go
	$(GO) test -timeout 10m ./...

verify: fmt vet lint layering race ## all that must hold before a change lands

fmt: ## every file is as gofmt writes it
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); if [ -n "$$out" ]; then echo "gofmt these files:"; echo "$$out"; exit 1; fi

vet: ## go vet, and go.mod is verified and tidy
	$(GO) vet ./...
	$(GO) mod verify
	@cp go.mod .go.mod.before && cp go.sum .go.sum.before && $(GO) mod tidy && \
	  { cmp -s go.mod .go.mod.before && cmp -s go.sum .go.sum.before; ok=$$?; mv .go.mod.before go.mod; mv .go.sum.before go.sum; \
	    [ $$ok = 0 ] || { echo "go.mod is not tidy: run go mod tidy"; exit 1; }; }

$(LINT): tools/go.mod
	@mkdir -p $(BIN)
	cd tools && $(GO) build -o ../$(LINT) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

lint: $(LINT) ## golangci-lint, which tools/ builds
	$(LINT) run ./...

layering: ## which room may import which
	$(GO) test -count=1 ./internal/layering

race: ## every test under the race detector (needs a C compiler)
	$(GO) test -race -timeout 20m ./...

bench: build ## one data node beside nginx, HAProxy and a plain reverse proxy; a region beside etcd, and with a million keys; what a cluster promises in time
	$(GO) run ./drills/bench -ringmain $(BIN)/ringmain
	$(GO) run ./drills/bench/commit -ringmain $(BIN)/ringmain
	$(GO) run ./drills/bench/watch
	$(GO) run ./drills/bench/keys -ringmain $(BIN)/ringmain
	$(GO) run ./drills/measure -ringmain $(BIN)/ringmain

soak: build ## long runs: the data node at 80 % load with faults, the control plane under a nemesis and under full load, the ownership check's wide bounds
	$(GO) run ./drills/bench -ringmain $(BIN)/ringmain -soak 10m -load 0.8
	$(GO) test ./drills/history/nemesis -run TestCluster -for 10m -keep $(CURDIR)/$(BIN)/history -timeout 20m -count=1
	$(GO) run ./drills/measure -ringmain $(BIN)/ringmain -changes 0 -revocations 0 -handovers 0 -leaders 0 -takeovers 0 -nodes 0 -idle 0 -load 10m
	HOMES_SCHEDULES=2000 $(GO) test ./controlplane/homes -run TestSchedules -timeout 30m -count=1
	$(GO) test ./controlplane/ownership/check -run TestWide -wide . -timeout 0 -count=1

e2e: build ## official SDKs, a real model and a drill, against make run
	./e2e/run

clean: ## binaries and the development cluster's data
	rm -rf $(BIN) .ringmain
