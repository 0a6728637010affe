# The commands of this repository; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help demo cluster-demo build test lint unit contract charts e2e advisories generate

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## run the gateway here with a sample upstream and print what to try
	@tests/prerequisites build
	@examples/demo

cluster-demo: ## run operator, gateway and a sample upstream on a Kubernetes and print what to try
	@tests/prerequisites build
	@examples/cluster-demo

build: ## build the programs (release)
	@tests/prerequisites build
	cargo build --release --locked

# What the tests run. Built so for all of them, it is built once; PROFILE=release tests what is shipped.
PROFILE = debug
programs = $${CARGO_TARGET_DIR:-$(CURDIR)/target}/$(PROFILE)
build_programs = cargo build -q --workspace --bins --locked $(if $(filter release,$(PROFILE)),--release)

test: cluster-programs lint unit contract charts e2e ## run every check and test

# In the background, and only with the time that others leave: it takes minutes, and the charts come late.
.PHONY: cluster-programs
cluster-programs:
	@[ -n "$$KUBECONFIG" ] || nice -n 19 tests/cluster/cluster build >/dev/null 2>&1 </dev/null &

lint: ## formatting and lints, warnings are errors
	@tests/prerequisites test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --test e2e --locked -- -D warnings
	cargo deny --log-level error check bans licenses sources
	tests/links

advisories: ## known vulnerabilities of what we use; fetches the RustSec database
	cargo deny check advisories

unit: ## tests that need no cluster
	@tests/prerequisites test
	mongo=$$(tests/cluster/mongo-wire/build) && DOORMAN_TEST_MONGO=$$mongo cargo test --workspace --locked
	python3 -m unittest discover -s ops/bench

contract: ## does the platform API do what its description says? schemathesis calls every route of a gateway
	@tests/prerequisites contract
	$(build_programs)
	DOORMAN_GATEWAY=$(programs)/doorman-gateway tests/openapi

charts: ## check the charts; starts the test cluster unless KUBECONFIG names another
	@tests/prerequisites test
	charts/reference --check
	tests/charts

e2e: ## the product on a real Kubernetes; starts the test cluster unless KUBECONFIG names another
	@tests/prerequisites build
	$(build_programs)
	@exports=$$(tests/cluster/env) && eval "$$exports" && \
		{ [ -z "$$DOORMAN_TEST_CLUSTER" ] || tests/cluster/images $(programs); } && \
		cargo test -q --workspace --locked --test e2e

generate: ## write what is generated from the code: CRD YAML, reference pages
	cargo run -q -p doorman-crds --locked -- crds/manifests charts/doorman-crds/files
	charts/reference
	UPDATE_DOCS=1 cargo test -q -p doorman-gateway -p doorman-crds --locked the_docs_page
