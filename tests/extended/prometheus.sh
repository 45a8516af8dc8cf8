# Prometheus reads our metrics: promtool finds nothing to complain about, a real Prometheus scrapes them and answers,
# and every expression that docs/operations.md offers is one.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need promtool "apt-get install prometheus"
need prometheus "apt-get install prometheus"
quic_off=0
begin
serve

# Traffic of every kind, so that no family is only zeros: both transports, replay, refusals, a duplicate.
seq 20000 >"$work/lines"
"$ROOMLOG_BIN" pub tea --publisher twice --url "ws://127.0.0.1:$ws" <"$work/lines"
"$ROOMLOG_BIN" pub tea --publisher twice --url "ws://127.0.0.1:$ws" <"$work/lines"
"$ROOMLOG_BIN" pub other --url "quic://127.0.0.1:$quic" --insecure <"$work/lines"
for url in "ws://127.0.0.1:$ws" "quic://127.0.0.1:$quic"; do
    "$ROOMLOG_BIN" sub tea --from earliest --until-live --insecure --url "$url" | cmp - "$work/lines"
done
"$ROOMLOG_BIN" bench --duration 2s --warmup 100ms --rooms 4 --publishers 4 --subscribers 8 --url "ws://127.0.0.1:$ws" >"$work/bench"

http /metrics >"$work/metrics"
promtool check metrics <"$work/metrics" || fail "promtool check metrics ended with $?"
echo "promtool check metrics: nothing to complain about in $(grep -c '^# TYPE' "$work/metrics") families"

# The expressions of the page, as alerts.
{
    printf 'groups:\n- name: page\n  rules:\n'
    grep -oE '`[^`]*roomlog_[^`]*`' docs/operations.md | tr -d '`' | grep -E '[(=/]' | sort -u |
        while read -r expression; do
            printf -- "  - alert: Page%d\n    expr: '%s'\n" "$((n = ${n:-0} + 1))" "$expression"
        done
} >"$work/rules.yml"
promtool check rules "$work/rules.yml" || fail "an expression of docs/operations.md is not one"

port=$(free_port)
cat >"$work/prometheus.yml" <<END
global: {scrape_interval: 1s, scrape_timeout: 1s}
rule_files: [$work/rules.yml]
scrape_configs:
- job_name: roomlog
  static_configs: [{targets: ["127.0.0.1:$admin"]}]
END
promtool check config "$work/prometheus.yml"
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/tsdb" --web.listen-address="127.0.0.1:$port" \
    --log.level=warn >"$work/prometheus.log" 2>&1 &
scraper=$!
at_end "kill -KILL $scraper 2>/dev/null; wait $scraper 2>/dev/null"

ask() { promtool query instant "http://127.0.0.1:$port" "$1"; }
scraped() { ask "up{job=\"roomlog\"} == 1" | grep -q roomlog; }
until_true 60 scraped || { cat "$work/prometheus.log" >&2; fail "Prometheus did not scrape"; }
ask "roomlog_build_info"
value() { ask "$1" | sed -nE 's/.*=> ([0-9.e+]+) @.*/\1/p'; }
expected=$(metric roomlog_published_records_total)
found() { [[ $(value 'sum(roomlog_published_records_total)') == "$expected" ]]; }
until_true 20 found || fail "Prometheus says $(value 'sum(roomlog_published_records_total)'), the server $expected"
((expected >= 40000)) || fail "only $expected records were counted"
# Of a repeat only the newest seqs are known as such (publisher_seqs); the older ones are refused as too old.
(($(value 'sum(roomlog_duplicates_total)') >= 1024)) || fail "duplicates: $(value 'sum(roomlog_duplicates_total)')"
ask 'histogram_quantile(0.99, sum by (le) (roomlog_publish_to_ack_seconds_bucket))'
ask 'sum by (transport) (roomlog_delivered_records_total)'
echo "Prometheus says the same as the server: $expected records"
