# The simulated world (src/simulation) with thousands of seeds, and the log against its model on real threads, until the
# time is over or a seed fails. The seed of a failure is printed, with the command that runs it again.
# ROOMLOG_TEST_SEED names the first seed.
set -euo pipefail
minutes=${ROOMLOG_CAMPAIGN_MINUTES:-60}
portion=${ROOMLOG_TEST_SEEDS:-250}
first=${ROOMLOG_TEST_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
tests=(simulation:: broker::tests::linearizable)
cargo test --quiet --locked --all-features --lib --no-run
log=$(mktemp)
trap 'rm -f "$log"' EXIT
seeds=0
while ((SECONDS < minutes * 60)); do
    ROOMLOG_TEST_SEED=$first ROOMLOG_TEST_SEEDS=$portion RUST_BACKTRACE=0 \
        cargo test --quiet --locked --all-features --lib -- --nocapture "${tests[@]}" >"$log" 2>&1 || {
        cat "$log"
        exit 1
    }
    first=$((first + portion)) seeds=$((seeds + portion))
    grep ' seeds, ' "$log"
done
echo "$seeds seeds"
((seeds > 0))
