# Autobahn's fuzzing client against an echo behind the same guard that reads for the server: some 300 cases of RFC 6455 that
# nobody here wrote. The suite is for Python 2.7 only. AUTOBAHN_REPORT=DIR keeps its pages.
#
# Left out, because the answer is known: 12.* and 13.* (compression, which is never agreed on), and the four cases whose
# message has more fragments (65,536 and 16,384) than the guard allows (8,192).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
if ! python2.7 -c 0 2>/dev/null && command -v pyenv >/dev/null; then
    PYENV_VERSION=$(pyenv versions --bare | grep '^2\.7' | tail -n 1)
    export PYENV_VERSION
fi
if ! python2.7 -c 0 2>/dev/null; then
    echo "SKIPPED: this needs Python 2.7 with pip (pyenv install 2.7); nothing newer runs Autobahn's test suite" >&2
    exit 77
fi
# There is no program to build, but there is a folder to clean up.
ROOMLOG_BIN=/bin/true begin
export PYTHONUSERBASE=${AUTOBAHN_PACKAGES:-$work/packages}
if [[ ! -x $PYTHONUSERBASE/bin/wstest ]]; then
    python2.7 -m pip install --quiet --user autobahntestsuite >"$work/pip.log" 2>&1 || {
        tail -n 3 "$work/pip.log" >&2
        echo "SKIPPED: this needs the Python package autobahntestsuite, which could not be installed" >&2
        exit 77
    }
fi

echo_test=$(cargo test --locked --lib --no-run 2>&1 | sed -nE 's/^ *Executable .*\((.*)\)$/\1/p')
[[ -x $echo_test ]] || fail "the test is not built"
port=$(free_port)
echo_name=transport::websocket::guard::tests::echo::text_and_binary_messages_come_back_as_what_they_were_and_text_must_be_utf_8
ROOMLOG_TEST_ECHO=127.0.0.1:$port "$echo_test" --exact "$echo_name" >"$work/echo.log" 2>&1 &
echo_process=$!
at_end "kill -KILL $echo_process"
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$port"); }
until_true 20 listens || { cat "$work/echo.log" >&2; fail "the echo does not start"; }

report=${AUTOBAHN_REPORT:-$work/report}
cat >"$work/fuzzing.json" <<JSON
{"outdir": "$report", "servers": [{"agent": "guard", "url": "ws://127.0.0.1:$port"}], "cases": ["*"],
 "exclude-cases": ["12.*", "13.*", "9.3.1", "9.3.2", "9.4.1", "9.4.2"], "exclude-agent-cases": {}}
JSON
timeout 600 "$PYTHONUSERBASE/bin/wstest" -m fuzzingclient -s "$work/fuzzing.json" >"$work/wstest.log" 2>&1 || {
    tail -n 5 "$work/wstest.log" >&2
    fail "wstest ended with $?"
}
kill -0 "$echo_process" || fail "the echo has ended"
python3 - "$report" <<'PYTHON'
import collections
import json
import sys

cases = json.load(open(f"{sys.argv[1]}/index.json"))["guard"]
key = lambda name: [int(part) for part in name.split(".")]
counts = {what: collections.Counter(case[what] for case in cases.values()) for what in ("behavior", "behaviorClose")}
for name in sorted(cases, key=key):
    if not {cases[name]["behavior"], cases[name]["behaviorClose"]} <= {"OK", "INFORMATIONAL"}:
        case = json.load(open(f"{sys.argv[1]}/{cases[name]['reportfile']}"))
        print(name, cases[name]["behavior"], "close", cases[name]["behaviorClose"], "-", " ".join(case["result"].split()))
print(f"{len(cases)} cases: {dict(counts['behavior'])}; how they closed: {dict(counts['behaviorClose'])}")
failed = [name for name, case in cases.items() if "FAILED" in case["behavior"] or "FAILED" in case["behaviorClose"]]
if len(cases) < 290 or failed:
    raise SystemExit(f"FAILED: {sorted(failed, key=key)} of {len(cases)} cases")
PYTHON
