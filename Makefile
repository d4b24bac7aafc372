# The project's commands. `make` alone lists them.
# ARGS is passed on: make test ARGS='ledger::', make dev ARGS='--no-story'.

ARGS ?=
SOAK_CASES ?= 10000

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## build, play the story against a broker on SQLite, and stay up
	cargo run --locked -- dev $(ARGS)

.PHONY: demo-pipeline
demo-pipeline: ## a pipeline's token becomes an S3 listing through taskpass exec, then nothing
	@scripts/demo-pipeline

.PHONY: build
build: ## build the binary for development
	cargo build --locked

.PHONY: test
test: ## set up what is missing, start a private PostgreSQL, run every test
	scripts/test $(ARGS)

.PHONY: check
check: fmt clippy doc-links deny imports language controls check-docs shell compose alarms ## formatting, lints, links, dependencies, imports, documents, scripts, compose file, alarms

.PHONY: fmt
fmt: ## fail where the formatting differs (cargo fmt repairs it)
	cargo fmt --all --check

.PHONY: clippy
clippy: ## every lint, warnings as errors
	cargo clippy --locked --all-targets -- -D warnings

.PHONY: doc-links
doc-links: ## every link in the documentation of the code leads somewhere
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --quiet --no-deps --lib --document-private-items

.PHONY: deny
deny: ## dependencies: banned crates, licences, sources (works offline)
	@scripts/setup check
	scripts/tool cargo deny --log-level error --locked check --hide-inclusion-graph bans licenses sources

.PHONY: duplicates
duplicates: ## dependencies: crates that are there in two versions, a cost but no fault
	cargo tree --locked --duplicates --depth 0

.PHONY: advisories
advisories: ## dependencies: known vulnerabilities (fetches the database)
	@scripts/setup check
	scripts/tool cargo deny --locked check advisories

.PHONY: imports
imports: ## modules import only downwards
	scripts/check-imports

.PHONY: language
language: ## idioms, clauses with "what" and empty field docs only get fewer
	scripts/check-language

.PHONY: controls
controls: ## docs/reference/controls.md names code and tests that exist
	scripts/check-controls

.PHONY: check-docs
check-docs: ## the documents: links, anchors, marks of shell blocks
	scripts/check-docs

.PHONY: docs
docs: ## build the documentation site into target/docs
	@scripts/setup docs
	scripts/docs $(ARGS)

.PHONY: shell
shell: ## shellcheck over the scripts
	@scripts/setup check
	scripts/check-shell

.PHONY: compose
compose: ## docker-compose.yml and Dockerfile, as far as this machine can check them
	@scripts/setup check
	scripts/check-compose

.PHONY: alarms
alarms: ## Prometheus's rules: valid, tested, and as docs/reference/metrics.md lists them
	@scripts/setup check
	scripts/check-alarms

.PHONY: bench
bench: ## the broker under load, in interleaved rounds (ARGS='NAME …': others; ARGS=--replay: the replay of decisions; ARGS=--decide: policy alone)
	@scripts/setup bench
	scripts/bench $(ARGS)

.PHONY: bench-smoke
bench-smoke: ## every benchmark with small numbers, to see that it runs
	@scripts/setup bench
	scripts/bench --smoke

.PHONY: foreign
foreign: ## other people's code verifies what the broker issues
	scripts/foreign $(ARGS)

.PHONY: openapi
openapi: ## write docs/openapi.json anew, from the code
	cargo run --locked --quiet -- openapi >docs/openapi.json

.PHONY: soak
soak: ## the suite with many property cases, the slow tests too
	PROPTEST_CASES=$(SOAK_CASES) NEXTEST_PROFILE=soak scripts/test --run-ignored all $(ARGS)

.PHONY: ci
ci: ## what continuous integration runs
	.ci/run

.PHONY: clean
clean: ## remove build output, the development store and the project's own tools
	cargo clean
	rm -rf .taskpass .tools
