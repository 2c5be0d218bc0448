# What a developer types. Every target installs what it needs first, see scripts/install-needs.

CARGO ?= cargo

# For `install`. With another prefix smoothserve runs as well, but D-Bus and polkit look for their files in /usr only.
DESTDIR =
prefix = /usr
BIN = target/release

.PHONY: help check check-fast check-debian13 demo machine build install install-needs deny fuzz fuzz-corpus bench-instructions

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

check: install-needs ## Format, lint, and run every test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked --quiet
	$(CARGO) build --workspace --examples --locked
	./scripts/run-tests

check-fast: install-needs ## Run the tests that need no machine of their own
	./scripts/run-tests 'not binary(machine)'

check-debian13: install-needs ## Run the tests on a machine with Debian 13 instead of this one's system
	./scripts/debian13 target/debian13
	SMOOTHSERVE_MACHINE_ROOT=$(CURDIR)/target/debian13 ./scripts/run-tests 'binary(machine)'

machine: install-needs ## A shell on a test machine with a real systemd and smoothserve on it (as root)
	$(CARGO) build --locked --bins --example shop --example machine
	@./target/debug/examples/machine

demo: install-needs ## Run an example service under load, deploy and restart it, count lost requests
	$(CARGO) build --release --locked --bins --example shop --example demo
	@./target/release/examples/demo

fuzz: FUZZ_SECONDS = 60
fuzz: ## Look for input that the proxy misreads, with each fuzz target for so long (FUZZ_SECONDS=)
	@./scripts/install-needs c++:g++
	./scripts/fuzz $(FUZZ_SECONDS)

fuzz-corpus: ## Keep the least of all input so far that reaches as much of the code
	@./scripts/install-needs c++:g++
	./scripts/fuzz minimise

bench-instructions: ## Count the instructions of routing and rewriting, compare with those kept (SAVE=--save)
	@./scripts/install-needs valgrind:valgrind
	$(CARGO) bench --locked --features internals --bench instructions -- $(SAVE)

build: ## Build the programs as they ship
	$(CARGO) build --release --locked --bins

# Under DESTDIR, if that is given. Needs no root there; neither builds, since root should not, nor enables anything, which
# is for a package to do.
install: unitdir = $(DESTDIR)$(prefix)/lib/systemd
install: datadir = $(DESTDIR)$(prefix)/share
install: ## Install what `make build` has built, with its units (DESTDIR=, prefix=, BIN=)
	install -D -m 755 -t $(DESTDIR)$(prefix)/bin $(BIN)/smoothserve $(BIN)/smoothctl
	ln -sf smoothctl $(DESTDIR)$(prefix)/bin/smoothtool
	install -D -m 644 -t $(unitdir)/system $(addprefix systemd/smoothserve.,service socket slice)
	install -D -m 644 -t $(unitdir)/user $(addprefix systemd/user/smoothserve.,service socket slice)
	sed -i 's,/usr/bin/,$(prefix)/bin/,' $(unitdir)/system/smoothserve.service $(unitdir)/user/smoothserve.service
	install -d $(unitdir)/system-generators $(unitdir)/user-generators
	ln -sf ../../../bin/smoothserve $(unitdir)/system-generators/smoothserve-generator
	ln -sf ../../../bin/smoothserve $(unitdir)/user-generators/smoothserve-generator
	install -D -m 644 systemd/smoothserve.sysusers.conf $(DESTDIR)$(prefix)/lib/sysusers.d/smoothserve.conf
	install -D -m 644 systemd/smoothserve.tmpfiles.conf $(DESTDIR)$(prefix)/lib/tmpfiles.d/smoothserve.conf
	install -D -m 644 -t $(unitdir)/catalog systemd/smoothserve.catalog
	install -D -m 644 -t $(datadir)/dbus-1/system.d systemd/org.smoothserve1.conf
	install -D -m 644 -t $(datadir)/dbus-1/system-services systemd/org.smoothserve1.service
	install -D -m 644 -t $(datadir)/polkit-1/actions systemd/org.smoothserve1.policy
	install -D -m 644 -t $(datadir)/doc/smoothserve README.md docs/configuration.md docs/dbus.md docs/logging.md docs/security.md
	install -D -m 644 -t $(datadir)/doc/smoothserve/examples services/example.yaml services/python.yaml
	install -d $(DESTDIR)/etc/smoothserve/services
	[ -e $(DESTDIR)/etc/smoothserve/smoothserve.yaml ] || \
		install -m 644 -t $(DESTDIR)/etc/smoothserve smoothserve.yaml

install-needs: ## Install what building and testing need (Debian)
	@./scripts/install-needs

deny: ## Check licences, sources and advisories of all dependencies (wants cargo-deny)
	$(CARGO) deny check
