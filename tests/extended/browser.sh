# A real Chromium drives the page at /: joins by the address, replays, goes live, publishes, rides out kill -9 of the
# server without losing or doubling a row, and a page from elsewhere cannot connect. ROOMLOG_SCREENSHOTS=DIR keeps
# pictures of the page.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need chromium "apt-get install chromium"
need node "apt-get install nodejs"
need npm "apt-get install npm"
begin
npm install --prefix "$work" --silent --no-audit --no-fund playwright-core >"$work/npm.log" 2>&1 || {
    tail -n 3 "$work/npm.log" >&2
    echo "SKIPPED: this needs the npm package playwright-core, which could not be installed" >&2
    exit 77
}
serve
end_server # Only its ports were wanted: the script in node starts and kills the server itself.
mkdir -p "${ROOMLOG_SCREENSHOTS:=$work/screenshots}"
cp tests/extended/browser.mjs "$work/"
CHROMIUM=$(command -v chromium) SCREENSHOTS=$(realpath "$ROOMLOG_SCREENSHOTS") DATA=$data WS=$ws ADMIN=$admin \
    timeout 300 node "$work/browser.mjs"
"$ROOMLOG_BIN" check "$data"
