# The readers of foreign bytes (wire, WebSocket, configuration, journal, volumes) against invented, cut and damaged ones,
# in two ways beside each other, each for ROOMLOG_CAMPAIGN_MINUTES (60): their property tests, over and over, each run with
# new seeds (seeds.sh does the same with all tests, and so comes by these far less often); and libFuzzer, led by the branches
# that an input takes, over one target of tests/fuzz after the other (FUZZ_TARGETS names some of them). What the fuzzer has
# found worth keeping is kept in the target directory, so that the next campaign goes on there.
#
# The seed of a property test that fails is printed; ROOMLOG_TEST_SEED=… runs it again. An input that fails is printed and
# kept: with a name that begins with found- it goes into tests/fuzz/corpus/TARGET, its story into tests/fuzz/found.md, and
# then the ordinary tests replay it.
set -euo pipefail
source tests/dispatch.sh
need cargo "install Rust"
minutes=${ROOMLOG_CAMPAIGN_MINUTES:-60}
target_directory=${CARGO_TARGET_DIR:-$PWD/target}
targets=(frames websocket journal block config)
if [[ -n ${FUZZ_TARGETS:-} ]]; then
    read -ra targets <<<"$FUZZ_TARGETS"
fi

properties() {
    local tests=(protocol:: types:: config:: storage::commit storage::journal storage::manifest storage::checkpoint
        storage::volume) log rounds=0 until=$((SECONDS + minutes * 60))
    log=$(mktemp)
    while ((SECONDS < until)); do
        cargo test --quiet --locked --all-features --lib -- "${tests[@]}" >"$log" 2>&1 || {
            cat "$log"
            rm -f "$log"
            return 1
        }
        rounds=$((rounds + 1))
    done
    tail -n 2 "$log"
    rm -f "$log"
    echo "property tests: $rounds rounds"
    ((rounds > 0))
}

# Instruments everything but what the build itself runs, which is why the target is named.
build_targets() {
    local host flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1)
    host=$(rustc -vV | sed -n 's/^host: //p')
    # The versions that the project ships; only libFuzzer is added to them.
    cp Cargo.lock tests/fuzz/Cargo.lock
    RUSTFLAGS="${flags[*]}" cargo build --quiet --release --manifest-path tests/fuzz/Cargo.toml --target "$host" \
        --target-dir "$target_directory/fuzz"
    programs=$target_directory/fuzz/$host/release
}

coverage_guided() {
    local target seconds=$((minutes * 60 / ${#targets[@]})) failed=0 code log
    ((seconds > 0)) || seconds=1
    for target in "${targets[@]}"; do
        # Blocks of several parts are long; elsewhere long inputs are only slow.
        local longest=16384
        if [[ $target == block ]]; then longest=49152; fi
        local grown=$target_directory/fuzz/corpus/$target found=$target_directory/fuzz/found/$target
        mkdir -p "$grown" "$found"
        log=$found/log
        code=0
        "$programs/$target" "$grown" "tests/fuzz/corpus/$target" -max_total_time="$seconds" -max_len="$longest" -timeout=20 \
            -rss_limit_mb=1500 -use_value_profile=1 -print_final_stats=1 -artifact_prefix="$found/" >"$log" 2>&1 || code=$?
        # The last line that tells of coverage, and how often it ran.
        echo "$target: $(grep -oE 'cov: [0-9]+ ft: [0-9]+ corp: [^ ]+' "$log" | tail -n 1), $(sed -n \
            's/^stat::number_of_executed_units: //p' "$log") runs in $seconds s"
        if ((code != 0)); then
            failed=1
            grep -vE '^(#|INFO|stat::)' "$log" | tail -n 40
            echo "FAILED: $target: the input is in $found" >&2
        fi
    done
    ((failed == 0))
}

cargo test --quiet --locked --all-features --lib --no-run
if ! command -v c++ >/dev/null; then
    properties
    echo "SKIPPED: libFuzzer needs a C++ compiler (apt-get install g++); the property tests passed" >&2
    exit 77
fi
build_targets
properties &
beside=$!
trap 'kill "$beside" 2>/dev/null || true' EXIT
failed=0
coverage_guided || failed=1
wait "$beside" || failed=1
exit "$failed"
