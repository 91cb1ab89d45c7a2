#!/bin/sh
# Makes .venv with Orthanc's own interpreter and installs segnode with the given extras.
#   setup/venv.sh EXTRAS        plugin,worker,viewer
set -eu
cd "$(dirname "$0")/.."

stamp=.venv/.installed-$(printf %s "$1" | tr , -)
wanted=$(cat pyproject.toml constraints.txt setup/venv.sh | sha256sum)
[ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ] || exit 0

# the plugin runs in the interpreter that Orthanc embeds, so the venv is made with that one
[ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv
echo "segnode: installing Python packages into .venv (some minutes the first time)" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$1]"
printf %s "$wanted" >"$stamp"
