# A million rooms (ROOMLOG_MILLION_ROOMS) that are made, used once and left, with the built-in settings: at most 500 MB
# resident when it is quiet again, a restart within 3 s, and the first access to a room behind it within 10 ms at p99.
# Minutes, whatever ROOMLOG_CAMPAIGN_MINUTES says.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
begin
rooms=${ROOMLOG_MILLION_ROOMS:-1000000}
resident_kib_max=488281 # 500 MB
restart_ms_max=3000
access_ms_max=10
if (($(df --output=avail -k "$work" | tail -n 1) < 6 * rooms)); then
    echo "SKIPPED: $rooms rooms need $((rooms * 6 / 1024)) MiB of disk" >&2
    exit 77
fi

million() {
    PYTHONDONTWRITEBYTECODE=1 python3 tests/campaign/million.py "$ws" "$@"
}

cpu_ticks() {
    sed 's/.*) //' "/proc/$server/stat" | awk '{ print $12 + $13 }'
}

# Until three seconds have passed in which the server took less than 50 ms of a core.
quiet() {
    local before
    before=$(cpu_ticks)
    sleep 3 # It is time that is measured.
    (($(cpu_ticks) - before < 5))
}

tell_memory() {
    until_true 120 quiet || fail "the server is not at rest after two minutes"
    local now
    now=$(resident "$server")
    echo "$1: $((now / 1024)) MiB resident, most $(($(awk '/^VmHWM:/ { print $2 }' "/proc/$server/status") / 1024)) MiB"
    ((now <= resident_kib_max)) || wrong+=("$1: $now KiB resident, more than $resident_kib_max")
}

restarted() { # restarted WHAT: how long a start takes, until it is ready for publishes
    local began took
    began=$(date +%s%N)
    serve || fail "$1: the server does not start"
    took=$((($(date +%s%N) - began) / 1000000))
    echo "$1: ready after $took ms"
    ((took <= restart_ms_max)) || wrong+=("$1: ready after $took ms, later than $restart_ms_max")
}

accesses() { # accesses WHAT
    local p50 p99 most
    read -r p50 p99 most < <(million access 2000 "$rooms") || fail "$1: the first accesses"
    echo "$1: first access to 2,000 rooms: p50 $p50 ms, p99 $p99 ms, most $most ms"
    awk -v p99="$p99" -v limit="$access_ms_max" 'BEGIN { exit !(p99 <= limit) }' ||
        wrong+=("$1: first access p99 $p99 ms, more than $access_ms_max")
}

# All of it is measured before anything is judged.
wrong=()
serve
echo "empty: $(($(resident "$server") / 1024)) MiB resident"
began=$SECONDS
clients=()
for part in 0 1; do
    million use $((rooms * part / 2)) $((rooms * (part + 1) / 2)) &
    clients+=($!)
done
for client in "${clients[@]}"; do
    wait "$client" || fail "a client"
done
has_all_rooms() { (($(metric roomlog_rooms) == rooms)); }
until_true 60 has_all_rooms || fail "$(metric roomlog_rooms) rooms instead of $rooms"
echo "$rooms rooms made, read and left in $((SECONDS - began)) s; $(du -sm "$data" | cut -f 1) MiB on the disk"
tell_memory "left"
end_server || fail "the server ended with $?"
restarted "restart"
accesses "restart"
tell_memory "restart"
kill_server
restarted "restart after kill -9"
accesses "restart after kill -9"
tell_memory "restart after kill -9"
end_server || fail "the server ended with $?"
million forget "$data"
restarted "restart without page cache"
accesses "restart without page cache"
if ((${#wrong[@]})); then
    fail "$(printf '%s; ' "${wrong[@]}")"
fi
