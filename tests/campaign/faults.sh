# The faults of the machine in their long form, one after the other: tests/faults, each with as many rounds as its top
# names. It takes about an hour, whatever ROOMLOG_CAMPAIGN_MINUTES says; a variable that is set already stays as it is.
set -euo pipefail
long=(
    KILL_ROUNDS=200 POWER_ROUNDS=20 POWER_NEW_ROUNDS=40 POWER_OS_ROUNDS=10 CALL_STEP=1 DAMAGE_PLACES=50 MEMORY_ROUNDS=20
    CLOCK_ROUNDS=60 FROZEN_SECONDS=60 RACE_ROUNDS=200 REPLAY_ROUNDS=40
)
for setting in "${long[@]}"; do
    name=${setting%%=*}
    if [[ -z ${!name:-} ]]; then export "${setting?}"; fi
done
tests/faults/run
