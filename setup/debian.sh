#!/bin/sh
# Installs the Debian packages that are missing, without starting their services.
#   setup/debian.sh PACKAGE…
set -eu

missing=""
for package in "$@"; do
    dpkg-query -W -f '${db:Status-Abbrev}\n' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "segnode: these Debian packages are missing:$missing. As root: apt-get install$missing" >&2
    exit 1
fi

# policy-rc.d says no to every service start (invoke-rc.d(8)); what was there comes back at the end
policy=/usr/sbin/policy-rc.d
kept=""
leave() {
    rm -f "$policy"
    [ -z "$kept" ] || mv "$kept" "$policy"
}
if [ -e "$policy" ]; then
    kept="$policy.segnode-kept"
    mv "$policy" "$kept"
fi
trap leave EXIT
trap 'exit 1' INT TERM HUP
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
echo "segnode: installing Debian packages:$missing" >&2
# shellcheck disable=SC2086 # the list is meant to be split
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "segnode: apt-get could not install$missing; the lines above say why." >&2
    exit 1
fi
rm -f "$log"
