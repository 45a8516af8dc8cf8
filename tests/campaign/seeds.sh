# Repeats the tests with a new seed each time, until the time is over or one of them fails. The seed of a failure is
# the last one printed: ROOMLOG_TEST_SEED=… runs it again.
set -euo pipefail
minutes=${ROOMLOG_CAMPAIGN_MINUTES:-60}
rounds=0
while ((SECONDS < minutes * 60)); do
    seed=$(od -An -N6 -tu8 /dev/urandom | tr -d ' ')
    echo "--- round $((rounds + 1)): ROOMLOG_TEST_SEED=$seed"
    ROOMLOG_TEST_SEED=$seed cargo test --quiet --locked --all-features --lib --test roomlog
    rounds=$((rounds + 1))
done
echo "$rounds rounds"
