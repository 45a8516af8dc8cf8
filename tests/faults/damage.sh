# Damage: every file of a data directory with flipped bits, a page of zeros, cut, missing, and as an older copy, after a
# clean stop and after kill -9. What `check` and `serve` make of it is told as a table; the outcome is intact, a clear
# refusal that names the file, or records that cannot be read and are told so; never fewer of them silently. After a kill a
# damaged last commit is taken for one that was being written, and that is logged.
#
# The ordinary tests have the same with places that are fixed (tests/processes/damage.rs); this adds places anywhere.
#
# DAMAGE_PLACES (2; long: 50): flipped bits, pages of zeros and cuts each, for each file.
set -euo pipefail
source tests/dispatch.sh
need cargo "https://rustup.rs"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
ROOMLOG_TEST_DAMAGE=${DAMAGE_PLACES:-2} cargo test --quiet --locked --test roomlog damage:: -- --nocapture >"$log" 2>&1 || {
    cat "$log"
    exit 1
}
cat "$log"
echo "$(grep -c '| check ' "$log") harms:"
grep -o '| serve [A-Z][a-z]*' "$log" | sort | uniq -c
(($(grep -c '| check ' "$log") > 100))
