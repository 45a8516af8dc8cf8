#!/bin/sh
# Runs the browser page's script against docs/protocol.md. Without node it is skipped, and says so.
set -eu
cd "$(dirname "$0")/../.."
if ! command -v node >/dev/null 2>&1; then
    echo "SKIPPED page_codec: node is not installed" >&2
    exit 0
fi
exec node --test tests/extended/page_codec.mjs
