# Power cuts for hours: tests/faults/power-cut.sh, as often as the time allows, half of it on each file system. Each of
# its discs begins empty and grows with every round.
set -euo pipefail
minutes=${ROOMLOG_CAMPAIGN_MINUTES:-60}
POWER_MINUTES=$(((minutes + 1) / 2)) bash tests/faults/power-cut.sh
