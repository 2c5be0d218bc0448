# What a developer types. Every target installs what it needs first, see scripts/install-needs.

CARGO ?= cargo

# Where `make install` puts things, and what it takes.
DESTDIR ?=
prefix ?= /usr
BIN ?= target/release
MODE = -D -m 644

.PHONY: help check check-fast check-debian13 demo machine build install install-needs deny

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

check: install-needs ## Format, lint, and run every test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked --quiet
	$(CARGO) build --workspace --examples --locked
	./scripts/run-tests

check-fast: install-needs ## Run the tests that need no machine of their own
	./scripts/run-tests -E 'not binary(machine)'

check-debian13: install-needs ## Run the tests on a machine with Debian 13 instead of this one's system
	./scripts/debian13 target/debian13
	SMOOTHSERVE_MACHINE_ROOT=$(CURDIR)/target/debian13 ./scripts/run-tests -E 'binary(machine)'

machine: install-needs ## A shell on a test machine with a real systemd and smoothserve on it (as root)
	$(CARGO) build --locked --bins --example shop --example machine
	@./target/debug/examples/machine

demo: install-needs ## Run an example service under load, deploy and restart it, count lost requests
	$(CARGO) build --release --locked --bins --example shop --example demo
	@./target/release/examples/demo

build: ## Build the programs as they ship
	$(CARGO) build --release --locked --bins

install: ## Install programs, units and policies below DESTDIR; enables and starts nothing
	install -D -m 755 $(BIN)/smoothserve $(DESTDIR)$(prefix)/bin/smoothserve
	install -D -m 755 $(BIN)/smoothctl $(DESTDIR)$(prefix)/bin/smoothctl
	ln -sf smoothctl $(DESTDIR)$(prefix)/bin/smoothtool
	for unit in service socket slice; do \
		install $(MODE) systemd/smoothserve.$$unit $(DESTDIR)$(prefix)/lib/systemd/system/smoothserve.$$unit && \
		install $(MODE) systemd/user/smoothserve.$$unit $(DESTDIR)$(prefix)/lib/systemd/user/smoothserve.$$unit || exit 1; \
	done
	install -d $(DESTDIR)$(prefix)/lib/systemd/system-generators $(DESTDIR)$(prefix)/lib/systemd/user-generators
	ln -sf ../../../bin/smoothserve $(DESTDIR)$(prefix)/lib/systemd/system-generators/smoothserve-generator
	ln -sf ../../../bin/smoothserve $(DESTDIR)$(prefix)/lib/systemd/user-generators/smoothserve-generator
	install $(MODE) systemd/smoothserve.sysusers $(DESTDIR)$(prefix)/lib/sysusers.d/smoothserve.conf
	install $(MODE) systemd/smoothserve.tmpfiles $(DESTDIR)$(prefix)/lib/tmpfiles.d/smoothserve.conf
	install $(MODE) systemd/smoothserve.catalog $(DESTDIR)$(prefix)/lib/systemd/catalog/smoothserve.catalog
	install $(MODE) systemd/org.smoothserve1.conf $(DESTDIR)$(prefix)/share/dbus-1/system.d/org.smoothserve1.conf
	install $(MODE) systemd/org.smoothserve1.service $(DESTDIR)$(prefix)/share/dbus-1/system-services/org.smoothserve1.service
	install $(MODE) systemd/org.smoothserve1.policy $(DESTDIR)$(prefix)/share/polkit-1/actions/org.smoothserve1.policy
	install -d $(DESTDIR)/etc/smoothserve/services
	test -e $(DESTDIR)/etc/smoothserve/smoothserve.yaml || \
		install -m 644 systemd/smoothserve.yaml $(DESTDIR)/etc/smoothserve/smoothserve.yaml

install-needs: ## Install what building and testing need (Debian)
	@./scripts/install-needs

deny: ## Check licences, sources and advisories of all dependencies (wants cargo-deny)
	$(CARGO) deny check
