# podo: make is an index; what is longer than a line is a script.

# These decide what Go's build cache can share, so every target uses the same.
export GOFLAGS := -trimpath -buildvcs=false
TAGS := netgo,osusergo,sqlite_omit_load_extension

.PHONY: help up down build build-images test test-unit test-e2e bench lint generate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## build what is missing and run a cluster on this machine
	scripts/up

down: ## stop that cluster and remove every trace of it
	scripts/down

build: ## make dist/podo, one file with everything in it
	scripts/install-deps
	scripts/build

build-images: ## make the images that the tests run
	scripts/install-deps
	scripts/build-images

test: ## everything that is checked: format, vet, unit tests, then a real cluster
	scripts/test

test-unit: ## the part that needs no cluster
	scripts/test unit

test-e2e: ## the part that needs one
	scripts/test e2e

bench: ## podo beside the same components as separate processes
	scripts/bench

lint: ## gofmt, vet and shellcheck
	scripts/test lint

generate: ## rewrite the generated documents
	go test -tags $(TAGS) ./pkg/config -run TestReference -update
	go test -tags $(TAGS) ./cmd/podo -run TestArchitecture -update

clean: ## remove what was built; keeps what was downloaded
	find dist -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +
