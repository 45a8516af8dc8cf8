#!/usr/bin/env bash
# Flame graphs of the server under workloads of bench/compare, into docs/flamegraphs: needs perf, root or a low
# kernel.perf_event_paranoid, and a program with frame pointers, which it builds into a folder of its own.
#
#   bench/compare/flames.sh                    all that docs/performance.md speaks of
#   bench/compare/flames.sh W2 1               the first server that a workload starts
#
# A part is recorded for two seconds, from when its server has been running for one.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v perf >/dev/null; then
    echo "SKIPPED: this needs perf (apt-get install linux-perf)" >&2
    exit 77
fi
target=${CARGO_TARGET_DIR:-target}
RUSTFLAGS="-C force-frame-pointers=yes" CARGO_PROFILE_RELEASE_DEBUG=1 CARGO_TARGET_DIR=$target/flames \
    cargo build --release --locked --quiet --bin roomlog
cargo build --release --locked --quiet -p roomlog-compare
compare=$target/release/roomlog-compare
program=$(realpath "$target/flames/release/roomlog")
work=$(mktemp -d)
trap 'pkill -f "serve --listen 127.0.0.1:19240" || true; rm -rf "$work"' EXIT
mkdir -p docs/flamegraphs

# flame WORKLOAD NTH NAME TITLE [ARGUMENT…]: the NTH server that the workload starts.
flame() {
    local workload=$1 nth=$2 name=$3 title=$4 seen="" count=0 server running
    shift 4
    "$compare" run --quick --rounds 1 --seconds 5 --workloads "$workload" --peers roomlog-ws --port 19240 \
        --peer-bin "roomlog=$program" --data "$work/data" --out "$work/lines.jsonl" "$@" >"$work/log" 2>&1 &
    running=$!
    while kill -0 "$running" 2>/dev/null; do
        server=$(pgrep -f "serve --listen 127.0.0.1:19240" | head -n 1 || true)
        if [[ -n $server && $server != "$seen" ]]; then
            seen=$server
            count=$((count + 1))
            if ((count == nth)); then
                sleep 1
                perf record --quiet -e cpu-clock -F 1999 --call-graph fp -p "$server" -o "$work/perf" sleep 2 || true
                kill "$running" "$server" 2>/dev/null || true
                break
            fi
        fi
        sleep 0.05
    done
    wait "$running" 2>/dev/null || true
    perf script -i "$work/perf" >"$work/script" 2>/dev/null
    "$compare" flame "$title" "$work/script" >"docs/flamegraphs/$name.svg"
    echo "docs/flamegraphs/$name.svg: $(grep -c cpu-clock "$work/script") samples"
    rm -rf "$work/data" "$work/perf"
}

if (($# == 2)); then
    flame "$1" "$2" "$1-$2" "$1, server $2"
    exit
fi
flame W1 1 fan-out-10 "One room, 10 subscribers, saturation"
flame W1 2 fan-out-100 "One room, 100 subscribers, saturation"
flame W2 1 rooms "1000 rooms of 2 subscribers, 100 publishers"
flame W3 4 acks-1x256 "One publisher, 256 publishes in flight"
flame W3 3 acks-256x1 "256 publishers, one publish in flight each"
flame W9 2 opening-rooms "Clients that open 20 rooms each at their last 50 records"
