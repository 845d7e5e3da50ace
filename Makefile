# Names the commands; what they do is in tools/.
PYTHON ?= python3
run = @$(PYTHON) tools/bootstrap.py

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-down test lint bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv with all pinned packages (every command below does this first)
	$(run) environment

demo: ## Stand up and verify an MLflow server on the local AWS; again: changes nothing. ARGS="-v" goes to ansible-playbook
	$(run) demo up $(ARGS)

demo-down: ## Remove what `make demo` built and stop the local AWS
	$(run) demo down $(ARGS)

test: ## Run every test that CI runs; PARTS="lint unit" runs only these, PARTS=topologies one more
	$(run) run_tests $(PARTS)

lint: ## Run the static checks only
	$(run) run_tests lint

bench: ## Measure the server against the tutorial's and a bare one; ARGS="latency memory" runs only these parts
	$(run) bench $(ARGS)

clean: ## Remove .venv, caches and build results (not a running demo)
	$(run) clean
