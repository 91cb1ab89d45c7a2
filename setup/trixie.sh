#!/bin/sh
# Runs a command on a copy of the working tree in Debian trixie: Orthanc 1.12.7, Python 3.13.
#   setup/trixie.sh COMMAND
# The folder .cache/trixie is made once and kept with what the command installs there. Needs root
# and debootstrap.
set -eu
command=${1:?a command is missing}
cd "$(dirname "$0")/.."
root=$PWD/.cache/trixie
tree=$root/home/segnode

if [ "$(id -u)" != 0 ]; then
    echo "segnode: a Debian in a folder needs chroot and mount; run this as root." >&2
    exit 1
fi
# mounts and processes in namespaces of their own are gone when this ends, however it ends
if [ -z "${SEGNODE_UNSHARED:-}" ]; then
    SEGNODE_UNSHARED=1 exec unshare --mount --pid --fork --kill-child "$0" "$@"
fi
mkdir -p "$root"
exec 9>"$root.lock"
if ! flock --nonblock 9; then
    echo "segnode: another run uses $root; wait for its end." >&2
    exit 1
fi

if [ ! -e "$root/.ready" ]; then
    echo "segnode: making a Debian trixie in $root (once)" >&2
    # this machine's mirror, from either format of sources.list(5), or else debootstrap's own
    mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v security | head -n 1)
    rm -rf "$root"
    if ! debootstrap --variant=minbase --include=ca-certificates,make trixie "$root" \
        ${mirror:+"$mirror"} >"$root.log" 2>&1; then
        tail -n 5 "$root.log" >&2
        echo "segnode: debootstrap failed; the lines above and $root.log say why." >&2
        exit 1
    fi
    touch "$root/.ready"
fi

# the working tree as it is now, beside what was built in there
mkdir -p "$tree"
find "$tree" -mindepth 1 -maxdepth 1 ! -name .venv ! -name .cache -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard >"$root.files"
tar -c --null --ignore-failed-read --warning=no-failed-read -T "$root.files" | tar -x -C "$tree"

# the way to the network, as this machine has it
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -R /usr/local/share/ca-certificates "$root/usr/local/share/"
chroot "$root" update-ca-certificates >"$root.log" 2>&1 || {
    cat "$root.log" >&2
    exit 1
}
[ ! -e /etc/pip.conf ] || cp -L /etc/pip.conf "$root/etc/"
for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
    case $name in
    PIP_FIND_LINKS) unset "$name" ;; # folders that are not in there
    PIP_* | SSL_CERT_* | REQUESTS_CA_BUNDLE | NODE_EXTRA_CA_CERTS | *_proxy | *_PROXY | TERM) ;;
    *) unset "$name" ;;
    esac
done
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export CI=1 # what is missing there is a failure
export PIP_NO_CACHE_DIR=1

mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount --bind -o ro /sys "$root/sys"
if [ -d ../shared ]; then
    mkdir -p "$root/home/shared"
    mount --bind -o ro "$(readlink -f ../shared)" "$root/home/shared"
fi
# shellcheck disable=SC2016 # the inner shell's
exec chroot "$root" /bin/sh -c 'cd /home/segnode && exec /bin/sh -c "$1"' sh "$command"
