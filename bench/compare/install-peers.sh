#!/bin/sh
# Installs the peers that packages offer: Redis, NATS, Mosquitto (Debian), Socket.IO (npm), rumqttd (cargo).
# Needs root for the Debian packages. What is not asked for, or cannot be had, is left out: the run names it as missing.
#   install-peers.sh [debian] [node] [rumqttd]      default: debian node
set -eu
here=$(cd "$(dirname "$0")" && pwd)
peers=$here/peers
mkdir -p "$peers"
[ $# -gt 0 ] || set -- debian node

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

rumqttd() {
    CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$peers/build} cargo install --locked --root "$peers" rumqttd
}

for part in "$@"; do
    case $part in
        debian | node | rumqttd) "$part" ;;
        *) echo "unknown part: $part" >&2; exit 2 ;;
    esac
done
