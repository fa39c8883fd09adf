# Two commands set everything up: `make run` and `make test`. `make help` lists them all.

PYTHON ?= python3
BIN := .venv/bin
export PYTHONPATH := realtime:.

.DEFAULT_GOAL := help
.PHONY: help run container page supabase edge test lint format bench chaos soak lock clean

help: ## List the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: .venv/run.stamp ## Run the whole product on this machine, on PORT (8000)
	@exec $(BIN)/python -m infra.local.stack

container: .venv/run.stamp ## Run the realtime container alone: no queue, so no summaries
	@exec $(BIN)/python -m chat

page: node_modules/stamp ## Bundle what the page needs to sign people in with Supabase
	@node_modules/.bin/esbuild frontend/supabase-auth.mjs --bundle --minify --format=iife --global-name=SupabaseAuth \
		--log-level=warning --outfile=frontend/vendor/supabase-auth.js

supabase: .venv/test.stamp node_modules/stamp ## Run a Supabase on this machine, without Docker, for `make run`
	@exec $(BIN)/python -m infra.local.supabase

edge: .venv/test.stamp node_modules/stamp ## Run the summary function as Supabase Edge would, for `make run`
	@exec $(BIN)/python -m infra.local.edge

test: .venv/test.stamp node_modules/stamp ## Run every test
	@$(BIN)/python -m pytest $(ARGS)

lint: .venv/test.stamp ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy realtime/chat functions infra tests

format: .venv/test.stamp ## Put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: .venv/test.stamp node_modules/stamp ## Measure this server beside a bare uvicorn loop
	@$(BIN)/python -m tests.bench $(ARGS)

chaos: .venv/test.stamp node_modules/stamp ## Kill everything at random under load, and count what was lost
	@$(BIN)/python -m tests.chaos $(ARGS)

soak: .venv/test.stamp node_modules/stamp ## Serve polite visitors while strangers attack, and count what they felt
	@$(BIN)/python -m tests.soak $(ARGS)

lock: .venv/test.stamp ## Write the hashes of the image's packages, after a change of realtime/requirements.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url realtime/requirements.txt --output-file realtime/requirements.lock

clean: ## Remove what was installed, but no data
	rm -rf .venv node_modules .serverless .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
		"Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make $(MAKECMDGOALS) PYTHON=python3.13")'
	@echo "making .venv …"
	@$(PYTHON) -m venv .venv

.venv/run.stamp: .venv/bin/python requirements.txt realtime/requirements.txt functions/requirements.txt
	@echo "installing into .venv (the first time takes about a minute) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/test.stamp: .venv/bin/python requirements.txt realtime/requirements.txt functions/requirements.txt tests/requirements.txt
	@echo "installing the test tools into .venv …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch .venv/run.stamp $@

# The Serverless CLI and the fake OpenAI server. Without Node the tests that need them say so and are skipped.
node_modules/stamp: package.json package-lock.json
	@if command -v npm >/dev/null; then echo "installing the Node tools …" \
		&& npm ci --no-audit --no-fund --loglevel=error && touch $@; \
		else echo "npm is not installed: tests that need Node will be skipped"; fi
