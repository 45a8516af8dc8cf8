#!/usr/bin/env bash
# An application stalls while two million records of 1 KiB pass, and then receives all of them; in a release build.
set -euo pipefail
source tests/dispatch.sh
need cargo "install Rust"

ROOMLOG_TEST_STALL_RECORDS=2000000 cargo test --release --all-features --locked --test roomlog \
    an_application_that_stalls -- --nocapture
