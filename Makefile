# The commands of a developer. Each target installs what it needs first (scripts/install-needs), but
# for `check-fast`.

CARGO ?= cargo

# Cargo's profile of what is built and packaged: `release` is what ships, `dev` is what the tests
# use.
PROFILE = release

# What cargo builds. The whole workspace gives dependencies more features than what ships has.
BUILD = --bins

# For `install`. With another prefix smoothserve runs as well, but D-Bus and polkit look for their
# files in /usr only.
DESTDIR =
prefix = /usr
BIN = target/$(PROFILE:dev=debug)
MANUAL = target/manual

# The commit whose package `upgrade-test` and `check` upgrade: that of the last release, or the first
# one with a promise as long as there is none.
FROM = 395d32c

# The program that writes the manual. Not --release: it runs once, for a moment.
MANUAL_WRITER ?= $(CARGO) run --locked --quiet --package smoothserve-manual --

.PHONY: help check check-fast check-debian12 check-debian13 upgrade-test soak test-deb demo machine bench bench-quick bench-growth bench-instructions fuzz fuzz-corpus attack build manual install deb install-needs deny minimum-rust

help: ## Show this list
	@sed -n 's/^\([a-z0-9 -]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 32

check: BUILD = --workspace --bins --examples
check: install-needs ## Format, lint, and run every test
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) metadata --manifest-path fuzz/Cargo.toml --locked --format-version 1 >/dev/null
	./scripts/deny
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked --quiet
	$(CARGO) build --locked $(BUILD)
	./scripts/minimum-rust
	$(MAKE) test-deb BUILD="$(BUILD)"
	./scripts/run-tests
	./scripts/upgrade-test $(FROM) --workspace || [ $$? -eq 3 ]

# The package under test holds the dev build that the tests need anyway, debug assertions included; a
# release build would compile all dependencies once more. `make deb` builds the package that ships,
# and `make check-debian12` tests that one.
#
# dpkg-buildpackage sets variables that C code depends on, so with them all that needs it would be
# built once more, and again for the tests.
test-deb: BUILD = --package smoothserve --package smoothserve-manual --bins --examples
test-deb: install-needs
	$(CARGO) build --locked $(BUILD)
	DEB_BUILD_OPTIONS=noautodbgsym DEB_COMPRESSION="-Zgzip -z1" MANUAL_WRITER=$(CURDIR)/target/debug/smoothserve-manual \
		$(MAKE) deb PROFILE=dev BUILD="$(BUILD)" CARGO="env -u CFLAGS -u CXXFLAGS -u SOURCE_DATE_EPOCH $(CARGO)"

check-fast: ## Format, lint, and run the tests that need neither root nor other programs; installs nothing
	@./scripts/check-fast

check-debian12: release = bookworm
check-debian13: release = trixie
check-debian12 check-debian13: install-needs ## Run the tests on a machine with a bare Debian instead of this one's system
	./scripts/debian $(release) target/$(release)
	$(MAKE) deb
	SMOOTHSERVE_MACHINE_ROOT=$(CURDIR)/target/$(release) ./scripts/run-tests 'binary(machine)'

upgrade-test: test-deb ## Upgrade the package of an earlier commit (FROM=) to this one and back, under load
	./scripts/upgrade-test $(FROM)

soak: SOAK_PART = 100
soak: test-deb ## Do everything that people do in a random order (SOAK_SEED=) under a million requests, or a part of it (SOAK_PART=, in percent)
	SOAK_PART=$(SOAK_PART) $(CARGO) test --locked --test machine -- --ignored --nocapture soak::

machine: install-needs ## A shell on a test machine with a real systemd and smoothserve on it (as root)
	$(CARGO) build --locked --bins --example shop --example machine
	@./target/debug/examples/machine

demo: install-needs ## Deploy and restart an example service under load, with and without smoothserve, and count lost requests
	$(CARGO) build --release --locked --bins --example shop --example demo
	@./target/release/examples/demo

bench: ## Measure smoothserve beside nginx and HAProxy, which are installed, and write benches/RESULTS.md
	./scripts/install-needs nginx:nginx-light haproxy:haproxy wrk:wrk h2load:nghttp2-client openssl:openssl
	$(CARGO) build --release --locked --package smoothserve --package smoothserve-bench --bins
	./target/release/bench all benches/RESULTS.md

bench-quick: ## The first row of it alone
	./scripts/install-needs nginx:nginx-light haproxy:haproxy wrk:wrk openssl:openssl
	$(CARGO) build --release --locked --package smoothserve --package smoothserve-bench --bins
	./target/release/bench quick

bench-growth: ## Measure what becomes of the costs with many hosts, services, instances and connections
	./scripts/install-needs wrk:wrk
	$(CARGO) build --release --locked --package smoothserve --package smoothserve-bench --bins
	./target/release/bench growth benches/RESULTS.md

fuzz: FUZZ_SECONDS = 60
fuzz: ## Look for input that the proxy or the manager misreads, with each fuzz target for so long (FUZZ_SECONDS=)
	@./scripts/install-needs c++:g++
	./scripts/fuzz $(FUZZ_SECONDS)

fuzz-corpus: ## Keep the least of all input so far that reaches as much of the code
	@./scripts/install-needs c++:g++
	./scripts/fuzz minimise

attack: install-needs ## Run the tests of the threats in docs/security.md beside clients that may not wait (`make check` does not time them)
	./scripts/attack

bench-instructions: ## Count the instructions of routing and rewriting, compare with those kept (SAVE=--save)
	@./scripts/install-needs valgrind:valgrind
	$(CARGO) bench --locked --features internals --bench instructions -- $(SAVE)

build: manual ## Build the programs as they ship, and their manual
	$(CARGO) build --profile $(PROFILE) --locked $(BUILD)

manual: ## Write the manual pages and the completions of the shells
	$(MANUAL_WRITER) $(MANUAL)

# Installs under DESTDIR, if that is given, and needs no root there. It does not build, since root
# should not, and enables nothing, since the package does that.
install: unitdir = $(DESTDIR)$(prefix)/lib/systemd
install: datadir = $(DESTDIR)$(prefix)/share
install: ## Install what `make build` has built, with its units (DESTDIR=, prefix=, BIN=, MANUAL=)
	install -D -m 755 -t $(DESTDIR)$(prefix)/bin $(BIN)/smoothserve $(BIN)/smoothctl
	ln -sf smoothctl $(DESTDIR)$(prefix)/bin/smoothtool
	install -D -m 644 -t $(unitdir)/system $(addprefix systemd/smoothserve.,service socket slice)
	install -D -m 644 -t $(unitdir)/system/run-smoothserve-.mount.d systemd/run-smoothserve-.mount.d/smoothserve.conf
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
	install -D -m 644 -t $(datadir)/doc/smoothserve README.md docs/configuration.md docs/dbus.md docs/http.md docs/logging.md docs/security.md
	install -D -m 644 -t $(datadir)/doc/smoothserve/examples services/example.yaml services/python.yaml
	install -D -m 644 -t $(datadir)/man/man1 $(addprefix $(MANUAL)/,smoothctl.1 smoothtool.1)
	install -D -m 644 -t $(datadir)/man/man5 $(addprefix $(MANUAL)/,smoothserve.yaml.5 org.smoothserve1.5)
	install -D -m 644 -t $(datadir)/man/man8 $(MANUAL)/smoothserve.8
	install -D -m 644 -t $(datadir)/bash-completion/completions $(addprefix $(MANUAL)/,smoothserve smoothctl)
	install -D -m 644 -t $(datadir)/zsh/vendor-completions $(addprefix $(MANUAL)/_,smoothserve smoothctl)
	install -D -m 644 -t $(datadir)/fish/vendor_completions.d $(addprefix $(MANUAL)/,smoothserve.fish smoothctl.fish)
	install -d $(DESTDIR)/etc/smoothserve/services
	[ -e $(DESTDIR)/etc/smoothserve/smoothserve.yaml ] || \
		install -m 644 -t $(DESTDIR)/etc/smoothserve smoothserve.yaml

# The package and what belongs to it go to target/deb. The toolchain in use builds it, whether a
# package brought that or rustup.
deb: version = $(shell dpkg-parsechangelog --show-field Version)_$(shell dpkg-architecture --query DEB_HOST_ARCH)
deb: install-needs ## Build the Debian package in target/deb, and have lintian look at it
	rm -rf target/deb
	mkdir -p target/deb
	DEB_DESTINATION=target/deb dpkg-buildpackage --build=binary --no-sign --post-clean \
		--build-profiles=pkg.smoothserve.rustup \
		--buildinfo-file=target/deb/smoothserve_$(version).buildinfo --buildinfo-option=-utarget/deb \
		--changes-file=target/deb/smoothserve_$(version).changes --changes-option=-utarget/deb
	lintian --allow-root --fail-on error,warning target/deb/smoothserve_$(version).changes

install-needs: ## Install what building and testing need (Debian)
	@./scripts/install-needs

minimum-rust: ## Build with the oldest Rust that Cargo.toml states, if that is here
	./scripts/minimum-rust

deny: ## Check licenses, sources and advisories of all dependencies, if cargo-deny is here
	./scripts/deny
