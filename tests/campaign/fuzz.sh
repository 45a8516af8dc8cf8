# The readers of foreign bytes (wire, configuration, journal, volumes) against invented, cut and damaged ones: their
# property tests, over and over, each run with new seeds. The seed of a failure is printed; ROOMLOG_TEST_SEED=… runs it
# again. seeds.sh does the same with all tests, and so comes by these far less often.
set -euo pipefail
minutes=${ROOMLOG_CAMPAIGN_MINUTES:-60}
tests=(protocol:: types:: config:: storage::commit storage::journal storage::manifest storage::checkpoint storage::volume)
cargo test --quiet --locked --all-features --lib --no-run
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rounds=0
while ((SECONDS < minutes * 60)); do
    cargo test --quiet --locked --all-features --lib -- "${tests[@]}" >"$log" 2>&1 || {
        cat "$log"
        exit 1
    }
    rounds=$((rounds + 1))
done
tail -n 2 "$log"
echo "$rounds rounds"
((rounds > 0))
