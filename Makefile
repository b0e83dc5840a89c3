# Every target installs what it needs first; nothing is assumed but a shell and make.
RUN := .venv/bin
STAMP := .venv/.installed
# One more than there are cores: tests wait for processes and clocks as well.
WORKERS ?= $(shell expr $$(nproc) + 1)

.PHONY: demo test test-unit test-system check mutants format hooks install browser bench

demo: install
	$(RUN)/armada demo $(ARGS)

test: test-unit test-system

test-unit: install
	$(RUN)/python -m pytest -m "not system" -n $(WORKERS) --dist loadfile $(ARGS)

# One after the other: these start real processes that keep time.
test-system: install browser
	$(RUN)/python -m pytest -m system $(ARGS)

check: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

# Breaks the code that keeps the arm safe, line by line, and sees that tests notice: ARGS=FILE.
mutants: install
	$(RUN)/python tests/mutants.py $(ARGS)

format: install
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

hooks: install
	$(RUN)/pre-commit install

# Without fleet_learning.py, which takes hours; docs/learning.md has its command.
bench: install
	@for file in benchmarks/[a-z]*.py; do \
	  case $$file in *fleet_learning.py) continue;; esac; \
	  echo "# $$file"; $(RUN)/python $$file || exit 1; done

# Without it the tests that look at report.html are skipped, and say so.
browser:
	-sh deploy/install/bootstrap.sh browser

install: $(STAMP)

$(STAMP): pyproject.toml uv.lock deploy/install/bootstrap.sh
	sh deploy/install/bootstrap.sh
	touch $(STAMP)
