# Looks for advisories that were published since the dependencies were chosen. The policy is deny.toml, which the
# ordinary tests enforce as far as that goes without the advisory database.
set -euo pipefail
source tests/dispatch.sh
need cargo-deny "cargo install --locked cargo-deny"
cargo deny --locked check advisories bans licenses sources
