# podo: make is an index; what is longer than a line is a script.

# These decide what Go's build cache can share, so every target uses the same.
export GOFLAGS := -trimpath -buildvcs=false
TAGS := netgo,osusergo,sqlite_omit_load_extension,kustomize_disable_go_plugin_support

.PHONY: help up down build build-images airgap test test-unit test-e2e test-release test-guests release reproducible bench lint generate clean

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

airgap: ## pack podo's own images for machines without a network
	scripts/install-deps
	scripts/build-airgap

test: ## everything that is checked: format, vet, unit tests, then a real cluster
	scripts/test

test-unit: ## the part that needs no cluster
	scripts/test unit

test-e2e: ## the part that needs one
	scripts/test e2e

test-release: ## what make release made: its signatures, its lists, arm64 and armv7 under emulation: [KEY=FILE]
	scripts/test release

test-guests: ## podo as a service of machines with a kernel of their own: systemd, reboots, quotas, wireguard
	scripts/test guests

release: ## make dist/release, a mirror to install from: VERSION=1.2.3 [ARCHES="amd64 arm64 armv7"] [KEY=FILE]
	scripts/release

reproducible: ## build twice, in different folders, and compare every byte
	scripts/reproducible

bench: ## podo beside the same components as separate processes, then clusters of podos
	scripts/bench
	scripts/bench-cluster

lint: ## gofmt, vet and shellcheck
	scripts/test lint

generate: ## rewrite the generated documents
	go test -tags $(TAGS) ./pkg/config -run TestReference -update
	go test -tags $(TAGS) ./cmd/podo -run TestArchitecture -update

clean: ## remove what was built; keeps what was downloaded
	mkdir -p dist
	find dist -mindepth 1 -maxdepth 1 ! -name cache ! -name up -exec rm -rf {} +
