# make demo [FAULT=crash|hang|blackhole|apperror|loss] [KEEP=1]   the main job on real parts, in network namespaces
# make test                                                  lint, types, unit, component and system tests
# make lint | unit | component | system | attack | bench     one part of it
# make fuzz                                                  a million mutated packets, guided by coverage
# make attack [ROUNDS=100000]                                 hostile messages, files, servers and lookers, for longer
# make chaos [ROUNDS=20] [SEED=N]                            random faults in sequences; SEED=N ROUNDS=1 runs one again
# make chaos-data [ROUNDS=20] [SEED=N]                       the same for clients' writes: LDAP; files from seed 10001 on
# make screenshots                                           the pictures of the web interface in README.md
# make install | uninstall [DESTDIR=]                        into this machine's Nagios; see README.md
# make registry                                              the files that repeat the list of check types, from check_failover/checks
# make clean
VENV ?= .venv
FAULT ?= crash
PYTHON := $(VENV)/bin/python
RUFF := $(VENV)/bin/ruff
# In a copy that every user may read, wherever this folder is; see tests/lab/readable.py.
READABLE := $(PYTHON) -m tests.lab.readable
PYTEST := $(READABLE) -m pytest --strict-skips
DESTDIR ?=

.PHONY: demo test lint unit component system attack screenshots bench fuzz chaos chaos-data registry install uninstall clean lab-demo lab-test lab-bench lab-fuzz

lab-demo:
	@VENV=$(VENV) bash .ci/install demo

lab-test:
	@VENV=$(VENV) bash .ci/install test

lab-bench:
	@VENV=$(VENV) bash .ci/install bench

lab-fuzz:
	@VENV=$(VENV) bash .ci/install fuzz

demo: lab-demo
	@$(READABLE) -m tests.lab.demo --fault $(FAULT) $(if $(KEEP),--keep)

# One pytest for all, so that its closing line counts everything; unit first, because it fails fastest.
test: lab-test lint
	$(PYTEST) tests/unit tests/attack tests/component tests/system

lint: lab-test
	$(RUFF) format --check --config .ci/ruff.toml check_failover tests handlers
	$(RUFF) check --config .ci/ruff.toml check_failover tests handlers
	$(PYTHON) -m mypy --config-file setup.cfg

unit component system: lab-test
	$(PYTEST) tests/$@

screenshots: lab-test
	$(PYTEST) tests/system/test_web_interface.py --pictures $(CURDIR)/nagios-conf/pictures

bench: lab-bench
	@for script in tests/bench/bench_*.py; do \
	    name=$$(basename $$script .py); $(READABLE) -m tests.bench.$$name || exit 1; \
	done

fuzz: lab-fuzz
	$(PYTHON) -m tests.fuzz.packets 1000000

attack: lab-test
	ROUNDS=$(or $(ROUNDS),100000) $(PYTEST) tests/attack

registry: lab-demo
	$(PYTHON) -m tests.lab.registry

chaos: lab-test
	$(READABLE) -m tests.chaos.run $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED))

chaos-data: lab-test
	$(READABLE) -m tests.chaos.data.run $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED))

install:
	DESTDIR=$(DESTDIR) nagios-conf/install

uninstall:
	DESTDIR=$(DESTDIR) nagios-conf/install --uninstall

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .install.log
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
