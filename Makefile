# Thin: each line calls what does the work. Needs Debian with git and make; see README.md.

RUN_PACKAGES = ca-certificates python3-venv orthanc orthanc-python orthanc-dicomweb redis-server bubblewrap
TEST_PACKAGES = chromium dicom3tools dcmtk postgresql docker-compose openssl procps iproute2
# npm, of the extra `viewer`, looks for node on the path
FETCH = PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python setup

.PHONY: demo test test-trixie gpu faults fuzz bench load setup test-setup clean

demo: setup
	@.venv/bin/segnode demo $(if $(STUDY),--study "$(STUDY)") $(if $(EXIT),--exit)

setup:
	@setup/debian.sh $(RUN_PACKAGES)
	@setup/venv.sh plugin,worker,viewer
	@$(FETCH)/ohif.py
	@$(FETCH)/front.py pages

test-setup:
	@setup/debian.sh $(RUN_PACKAGES) $(TEST_PACKAGES)
	@setup/venv.sh plugin,worker,viewer,monai,nnunet,dev
	@$(FETCH)/ohif.py
	@$(FETCH)/front.py pages
	@$(FETCH)/front.py tests

test: test-setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# each image of highdicom 0.28 has a database in memory, which Python 3.13 wants closed
test-trixie:
	@setup/debian.sh debootstrap
	@setup/trixie.sh "make test-setup && .venv/bin/pytest -W 'ignore:unclosed database:ResourceWarning' \
		$(or $(TESTS),tests/plugin tests/system)"

# needs a CUDA device, no Orthanc and no Redis
gpu: test-setup
	@.venv/bin/pytest -s tests/gpu

faults: test-setup
	@.venv/bin/python -m tests.faults.matrix $(FAULTS)

fuzz: test-setup
	@SEGNODE_FUZZ=1 .venv/bin/pytest -q tests/worker/test_fuzz.py

bench: test-setup
	@setup/venv.sh plugin,worker,viewer,bench
	@.venv/bin/python -m tests.bench.bench
	@.venv/bin/python tests/bench/deciding.py
	@.venv/bin/python -m tests.bench.throughput
	@.venv/bin/python tests/bench/backlog.py
	@.venv/bin/python -m tests.bench.fetch
	@.venv/bin/python -m tests.bench.side_by_side
	@.venv/bin/python -m tests.bench.writers
	@.venv/bin/python -m tests.bench.viewer
	@.venv/bin/pytest -qs tests/bench/pages.py

load: setup
	@.venv/bin/python tests/bench/load.py

clean:
	rm -rf .venv .cache data artifacts
