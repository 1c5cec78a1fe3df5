# make help says what there is.

CARGO ?= cargo
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
# The C library is linked in: the plugin runs on any distribution's root file
# system. The target has to be named, or the flag reaches procedural macros as
# well, which are shared objects.
STATIC := RUSTFLAGS="$(RUSTFLAGS) -C target-feature=+crt-static"
# The plugins are started for every pod. musl begins its work at once, where glibc asks the
# processor what it can: some 30 instructions which a hypervisor answers, 0.4 ms of a start.
# Likewise SHA-256, of one name. And at a fixed address, in two mappings instead of four, no
# page is written to relocate it.
MUSL := $(firstword $(subst -, ,$(HOST)))-unknown-linux-musl
PLUGIN := RUSTFLAGS='$(RUSTFLAGS) -C target-feature=+crt-static -C relocation-model=static \
	-C link-arg=-Wl,-z,noseparate-code --cfg sha2_backend="soft"'
PLUGINS := trammel trammel-ipam
PROGRAMS := trammel-agent trammel-demo
RELEASE := target/release
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

# The harness looks for the programs of this tree.
unexport CARGO_TARGET_DIR

.PHONY: help setup build image demo test bench cluster-test conformance fuzz lint fmt clean-netns
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what demo and tests call and this machine lacks (apt, cnitool)
	@tests/setup.sh

build: ## static release programs into target/release
	@$(STATIC) $(CARGO) build --release --target $(HOST) -p policy-agent -p tests --bins
	@mkdir -p $(RELEASE)
	@for p in $(PROGRAMS); do ln -f target/$(HOST)/release/$$p $(RELEASE)/$$p; done
	@has_musl() { test -d "$$(rustc --print sysroot)/lib/rustlib/$(MUSL)/lib"; }; target=$(MUSL); \
	has_musl || rustup target add $(MUSL) || true; \
	has_musl || { target=$(HOST); echo "without $(MUSL) the plugins start more slowly"; }; \
	$(PLUGIN) $(CARGO) build --profile plugin --target $$target -p cni-bin --bins && \
	for p in $(PLUGINS); do ln -f target/$$target/plugin/$$p $(RELEASE)/$$p || exit 1; done

IMAGE ?= localhost/trammel:0.1.0
image: build ## the image of conf/ as a docker archive, without container tools (IMAGE=name:tag)
	@conf/mkimage.py target/trammel-image.tar $(IMAGE) \
		$(RELEASE)/trammel $(RELEASE)/trammel-ipam $(RELEASE)/trammel-agent

demo: setup build ## a node, pods, a Service and policies in namespaces: expected against observed (ARGS="-o json")
	@$(AS_ROOT) $(RELEASE)/trammel-demo $(ARGS)

# Most of a test is waiting.
RUST_TEST_THREADS ?= $(shell expr 2 '*' $$(nproc))
test: setup build ## every suite; those with real packets need root (TRAMMEL_SKIP_ROOT=1 leaves them out)
	@RUST_TEST_THREADS=$(RUST_TEST_THREADS) $(CARGO) test --workspace --no-fail-fast

bench: setup build ## every benchmark; those with real packets need root
	@$(STATIC) $(CARGO) bench --target $(HOST) --workspace --bench '*'

cluster-test: setup image ## a real Kubernetes on two nodes, Trammel its network, and the scenarios on it; root (ARGS="policies::")
	@tests/cluster/test $(ARGS)

conformance: setup image ## the official [sig-network] tests on such a cluster, results in tests/cluster/conformance.md; root
	@tests/cluster/build
	@tests/cluster/up
	@tests/cluster/conformance $(ARGS); status=$$?; tests/cluster/down; exit $$status

# Of the four targets one after the other.
FUZZ_SECONDS ?= 600
fuzz: ## ten minutes of coverage-led fuzzing; needs a nightly toolchain and cargo-fuzz (FUZZ_SECONDS=600)
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || { echo "make fuzz needs: \
	rustup toolchain install nightly; cargo install cargo-fuzz"; exit 1; }
	@for t in conf prev_result cni_args leases; do \
		mkdir -p fuzz/corpus/$$t; \
		$(CARGO) +nightly fuzz run $$t fuzz/corpus/$$t fuzz/seeds/$$t \
			-- -max_total_time=$$(($(FUZZ_SECONDS) / 4)) || exit 1; \
	done

lint: ## formatting, clippy and rustdoc, warnings denied; cargo-deny where installed
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps --document-private-items
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; fi

fmt: ## format the sources
	@$(CARGO) fmt --all

clean-netns: build ## remove namespaces and files of demo and test runs that were killed
	@$(AS_ROOT) $(RELEASE)/trammel-demo --clean
