# A network that fails: the program's own publishers and subscribers, over WebSocket and QUIC at a time, on the other side
# of a link with loss, too little bandwidth, cuts, a server that is killed meanwhile, connections of which only one side
# knows, delay, reordering and resets. They must come back by themselves, and in the end nothing is missing or doubled:
# network.py judges, which reads the room with a client of its own. Each fault shows that it took place.
#
# All of it happens in network namespaces that are gone with the script. NETWORK_FAULTS="loss cut" runs only these,
# NETWORK_ROUNDS (1) is how often, NETWORK_SECONDS (10) how long lines are published in each.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need_root
need python3 "apt-get install python3"
need nft "apt-get install nftables"
need ip "apt-get install iproute2"
need tc "apt-get install iproute2"
need ss "apt-get install iproute2"
need nsenter "apt-get install util-linux"
if [[ -z ${NETWORK_INSIDE:-} ]]; then
    unshare --net true 2>/dev/null || { echo "SKIPPED: this needs network namespaces" >&2; exit 77; }
    # There is no way to the registry from where it goes on.
    if [[ -z ${ROOMLOG_BIN:-} ]]; then cargo build --release --locked --quiet; fi
    NETWORK_INSIDE=1 exec unshare --net bash "$0"
fi
quic_off=0
begin
host=10.99.0.1
export ROOMLOG__SERVER__ALLOW_ANONYMOUS=true ROOMLOG__SERVER__ALLOWED_HOSTS=$host PYTHONDONTWRITEBYTECODE=1

# The server's side is here, the clients' is there.
unshare --net sleep infinity &
peer=$!
at_end "kill $peer"
own_network() { [[ $(readlink /proc/$peer/ns/net) != $(readlink /proc/$$/ns/net) ]]; }
until_true 10 own_network
there() { nsenter --net=/proc/$peer/ns/net "$@"; }
ip link add here type veth peer name there netns $peer
ip link set lo up
there ip link set lo up
# One packet is one packet: otherwise what is lost are 64 KiB at a time.
ip link set here gso_max_segs 1 up
there ip link set there gso_max_segs 1 up
ip address add $host/24 dev here
there ip address add 10.99.0.2/24 dev there

# rules HERE THERE [LEAVING]: what the two sides do with packets that come over the link, and the clients' side with those
# that leave. @gone are the ports of $gone.
gone=""
rules() {
    local side
    for side in here there; do
        {
            echo "table inet faults"
            echo "delete table inet faults"
            echo "table inet faults {"
            echo "    set gone { type inet_service; ${gone:+elements = { $gone \};} }"
            echo "    chain arrives { type filter hook input priority 0;"
            if [[ $side == here ]]; then echo "$1"; else echo "$2"; fi
            echo "    }"
            if [[ $side == there ]]; then echo "chain leaves { type filter hook output priority 0;"; echo "${3:-}"; echo "}"; fi
            echo "}"
        } >"$work/rules"
        if [[ $side == here ]]; then nft -f "$work/rules"; else there nft -f "$work/rules"; fi
    done
}
# dropped: how many packets all rules have counted.
dropped() {
    { nft list table inet faults; there nft list table inet faults; } |
        awk '{ for (at = 1; at < NF; at++) if ($at == "packets") sum += $(at + 1) } END { print sum + 0 }'
}
cut() { rules 'iifname "here" counter drop' 'iifname "there" counter drop'; }
healed() { rules "" ""; }
# From now on @gone are the ports of all connections that the clients have.
mark_gone() {
    gone=$(there ss -Htuan | awk '$2 != "LISTEN" && $5 !~ /^127/ { sub(/.*:/, "", $5); print $5 }' | sort -u | paste -sd,)
    [[ $gone == *,*,*,* ]] || fail "4 clients have the ports $gone"
}
between() { sleep "$(awk -v least="$1" -v most="$2" -v seed="$RANDOM$RANDOM" 'BEGIN { srand(seed); print least + rand() * (most - least) }')"; }

# clients [PORT]: starts them, on the link or through the proxy on a port of theirs; returns when they read and publish.
clients() {
    local urls=("ws://$host:$ws" "quic://$host:$quic")
    if (($# > 0)); then urls=("ws://127.0.0.1:$1" "quic://127.0.0.1:$1"); fi
    seen=$work/seen
    rm -rf "$seen"
    mkdir "$seen"
    there python3 tests/faults/network.py drive "$seen" tea "${NETWORK_SECONDS:-10}" "${urls[@]}" &
    driver=$!
    until_true 60 under_way || fail "the clients do not begin"
}
under_way() { (($(metric roomlog_subscriptions) >= 2 && $(metric roomlog_published_records_total) > 50)); }
# all_is_well: the clients end, and what they saw is right. $sent is what they were sent meanwhile, in bytes.
all_is_well() {
    wait "$driver" || fail "the clients"
    sent=$(metric roomlog_sent_bytes_total)
    python3 tests/faults/network.py check "$seen" tea "$host" "$ws"
    echo "$(metric roomlog_sessions_opened_total) sessions, $(metric roomlog_duplicates_total) repeats answered"
}
nobody_left() { [[ $(metric roomlog_connections) == 0 ]]; }

loss() {
    local percent before
    for percent in 5 20; do
        echo "--- $percent of 100 packets are lost, in each direction"
        rules "iifname \"here\" numgen random mod 100 < $percent counter drop" "iifname \"there\" numgen random mod 100 < $percent counter drop"
        data=$work/loss$percent
        serve
        clients
        before=$(dropped)
        all_is_well
        echo "$(dropped) packets lost"
        (($(dropped) > before && $(dropped) >= percent * 10)) || fail "the rig loses nothing"
        healed
        end_server || fail "the server ended with $?"
    done
}

bandwidth() {
    echo "--- 1 Mbit/s in each direction, a queue of 50 ms"
    local began took full
    tc qdisc add dev here root tbf rate 1mbit burst 4kb latency 50ms
    there tc qdisc add dev there root tbf rate 1mbit burst 4kb latency 50ms
    serve
    began=$SECONDS
    clients
    all_is_well
    took=$((SECONDS - began))
    full=$(tc -s qdisc show dev here | sed -nE 's/.*\(dropped ([0-9]+), overlimits ([0-9]+).*/\1 dropped, \2 overlimits/p')
    echo "$took s for $sent bytes to the clients; the queue towards them: $full"
    ((took >= sent / 125000 - 2 && took > ${NETWORK_SECONDS:-10})) || fail "the link was faster than 1 Mbit/s"
    tc qdisc del dev here root
    there tc qdisc del dev there root
    end_server || fail "the server ended with $?"
}

cuts() {
    echo "--- the link is cut and healed, for seconds and for longer than QUIC waits"
    local seconds before
    serve
    clients
    before=$(metric roomlog_sessions_opened_total)
    for seconds in 2 15 1 3; do
        between 0.2 1.5
        ip link set here down
        sleep "$seconds"
        ip link set here up
    done
    all_is_well
    (($(metric roomlog_sessions_opened_total) > before)) || fail "nobody lost a connection"
    end_server || fail "the server ended with $?"
}

restart() {
    echo "--- the server is killed and another is there while the link is cut: it knows nothing of their connections"
    serve
    clients
    local kills=0
    while ((kills < 3)) && kill -0 "$driver" 2>/dev/null; do
        between 0.2 1.5
        cut
        between 0.1 0.5
        kill_server
        serve || fail "the server does not start again"
        healed
        kills=$((kills + 1))
        until_true 60 back_or_done || fail "they do not come back"
    done
    all_is_well
    echo "$kills times"
    end_server || fail "the server ended with $?"
}
back_or_done() { ! kill -0 "$driver" || (($(metric roomlog_subscriptions) >= 2)); }

half_open() {
    echo "--- what clients say arrives, answers do not; then their connections are no more, which the server is not told"
    export ROOMLOG__LIMITS__IDLE_TIMEOUT="15 s" ROOMLOG__LIMITS__PING_INTERVAL="5 s"
    serve
    unset ROOMLOG__LIMITS__IDLE_TIMEOUT ROOMLOG__LIMITS__PING_INTERVAL
    healed
    clients
    local before most
    before=$(metric roomlog_published_records_total)
    mark_gone
    rules "" 'iifname "there" tcp dport @gone counter drop; iifname "there" udp dport @gone counter drop'
    between 0.5 1
    (($(metric roomlog_published_records_total) > before)) || fail "nothing arrived"
    rules 'iifname "here" tcp sport @gone counter drop; iifname "here" udp sport @gone counter drop' \
        'iifname "there" udp dport @gone counter drop' 'oifname "there" tcp sport @gone counter reject with tcp reset'
    until_true 60 too_many || fail "they do not come back"
    most=$(metric roomlog_connections)
    all_is_well
    (($(metric roomlog_duplicates_total) > 0)) || fail "no answer was lost"
    # Those which nobody holds the other end of have unsent deliveries, and still are not kept for stall_timeout.
    until_true 60 nobody_left || fail "$(metric roomlog_connections) connections are kept of clients that are gone"
    echo "$most connections of 4 clients at a time, all given up in time"
    healed
    end_server || fail "the server ended with $?"
}
too_many() { (($(metric roomlog_connections) > 4)); }

forgotten() {
    echo "--- something between forgets all connections: no packet passes, nobody is told"
    serve
    healed
    clients
    mark_gone
    rules 'iifname "here" tcp sport @gone counter drop; iifname "here" udp sport @gone counter drop' \
        'iifname "there" tcp dport @gone counter drop; iifname "there" udp dport @gone counter drop'
    all_is_well
    (($(metric roomlog_sessions_opened_total) >= 8)) || fail "nobody came back"
    until_true 90 nobody_left || fail "$(metric roomlog_connections) connections are kept of clients that are gone"
    healed
    end_server || fail "the server ended with $?"
}

# through HOW: all goes through the proxy, whose counts are in $work/proxy.
through() {
    local port proxy
    healed
    serve
    port=$(free_port)
    # Not by the function: what is to be ended is the proxy, and not a shell that waits for it.
    nsenter --net=/proc/$peer/ns/net python3 tests/faults/proxy.py "$port" "$host" "$ws" "$quic" "$1" >"$work/proxy" &
    proxy=$!
    at_end "kill -KILL $proxy 2>/dev/null"
    until_true 10 grep -q listens "$work/proxy" || fail "the proxy does not start"
    clients "$port"
    all_is_well
    kill -TERM "$proxy"
    wait "$proxy" || true
    ends=("${ends[@]:1}")
    sed 1d "$work/proxy" | paste -sd, | sed 's/,/, /g'
    end_server || fail "the server ended with $?"
}
road() { awk -v name="$1" '$1 == name { count = $2 } END { print count + 0 }' "$work/proxy"; }

delay() {
    echo "--- 20 to 200 ms late in each direction, in pieces; datagrams overtake each other and come twice"
    through delay
    (($(road datagrams_overtaken) > 100 && $(road datagrams_doubled) > 10)) || fail "the road is in order"
}

resets() {
    echo "--- TCP connections are reset within 3 s, with answers swallowed before; QUIC's come from other ports"
    through resets
    (($(road resets) >= 3 && $(road rebindings) >= 2)) || fail "the road is good"
    (($(road swallowed_bytes) > 0)) || fail "no answer was lost"
}

for ((round = 1; round <= ${NETWORK_ROUNDS:-1}; round++)); do
    for fault in ${NETWORK_FAULTS:-loss bandwidth cuts restart half_open forgotten delay resets}; do
        data=$work/$fault$round
        healed
        "$fault"
        "$ROOMLOG_BIN" check "$data" | tail -n 1
        rm -rf "$data"
    done
done
