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

test: lint unit contract charts e2e ## run every check and test

lint: ## formatting and lints, warnings are errors
	@tests/prerequisites test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy -p doorman-tests --test e2e --locked -- -D warnings
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
	cargo build -q -p doorman-gateway --locked
	tests/openapi

charts: ## check the charts; starts the test cluster unless KUBECONFIG names another
	@tests/prerequisites test
	charts/reference --check
	tests/charts

e2e: build ## the product on a real Kubernetes; starts the test cluster unless KUBECONFIG names another
	@exports=$$(tests/cluster/env) && eval "$$exports" && \
		{ [ -z "$$DOORMAN_TEST_CLUSTER" ] || tests/cluster/images $${CARGO_TARGET_DIR:-target}/release; } && \
		cargo test -q -p doorman-tests --locked --test e2e

generate: ## write what is generated from the code: CRD YAML, reference pages
	cargo run -q -p doorman-crds --locked -- crds/manifests charts/doorman-crds/files
	charts/reference
	UPDATE_DOCS=1 cargo test -q -p doorman-gateway -p doorman-crds --locked the_docs_page
