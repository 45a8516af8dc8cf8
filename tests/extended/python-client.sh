# A client written from docs/protocol.md alone, in the Python standard library, walks through the page against a real
# server: an independent reader of the specification. What it cannot do, the page does not say well enough.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
begin
serve
client() { PYTHONDONTWRITEBYTECODE=1 timeout 300 python3 tests/extended/python_client.py "$ws" "$1" "$work/state"; }

client first
kill_server
serve || fail "the server does not start again"
client second
client goodbye >"$work/goodbye" &
waiting=$!
until_true 20 grep -q joined "$work/goodbye" || fail "the client did not join"
end_server || fail "the server ended with $?"
wait "$waiting" || fail "the goodbye was not as the page says"
tail -n 1 "$work/goodbye"
"$ROOMLOG_BIN" check "$data"
