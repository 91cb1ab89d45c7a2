# Thin: each line calls what does the work. Needs Debian with git and make; see README.md.

RUN_PACKAGES = ca-certificates python3-venv orthanc orthanc-python orthanc-dicomweb redis-server
TEST_PACKAGES = chromium dicom3tools dcmtk postgresql

.PHONY: test

test:
	@setup/debian.sh $(RUN_PACKAGES) $(TEST_PACKAGES)
	@setup/venv.sh plugin,worker,viewer,dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/pytest
