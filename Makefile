# What a developer types. Every target installs what it needs first, see scripts/install-needs.

CARGO ?= cargo

.PHONY: help check demo build install-needs deny

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

check: install-needs ## Format, lint, and run every test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked --quiet
	$(CARGO) build --workspace --examples --locked
	./scripts/run-tests

demo: install-needs ## Run an example service under load, deploy and restart it, count lost requests
	$(CARGO) build --release --locked --bins --example shop --example demo
	@./target/release/examples/demo

build: ## Build the programs as they ship
	$(CARGO) build --release --locked --bins

install-needs: ## Install what building and testing need (Debian)
	@./scripts/install-needs

deny: ## Check licences, sources and advisories of all dependencies (wants cargo-deny)
	$(CARGO) deny check
