# Data directories that earlier versions have written, one for each format of the directory (tests/golden/directory-vN),
# opened by this one: every record is there as it was, with its offset, time, publisher and seq, in the same epoch; a
# repeat of an old publish is not stored again; publishing goes on behind it; and the result is intact. Once a clean stop
# went before, once a kill: the mark of the clean stop is taken away.
#
# How one is made, when a format is new: tests/faults/old-directory.sh make N. It must not change afterwards.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
need tar "apt-get install tar"
begin
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES=0 ROOMLOG__STORAGE__STRETCH_BYTES="1 MiB"
export ROOMLOG__STORAGE__PUBLISHER_AGE_MAX="365 d"
rooms=(few "général/ü" many)

# all: every record of every room, as the program exports them, and the epoch.
all() {
    local room
    for room in "${rooms[@]}"; do
        "$ROOMLOG_BIN" export "$room" --url "ws://127.0.0.1:$ws"
    done
    "$ROOMLOG_BIN" rooms --url "ws://127.0.0.1:$ws" >/dev/null
}
input() { # input COUNT: lines that compress well
    awk -v count="$1" 'BEGIN { for (n = 1; n <= count; n++) printf "line %d of the fixture, %0*d\n", n, n % 13 ? 20 : 3000, n }'
}
publish() { # publish ROOM COUNT [OPTION…]
    input "$2" | "$ROOMLOG_BIN" pub "$1" --publisher fixture "${@:3}" --url "ws://127.0.0.1:$ws"
}

if [[ ${1:-} == make ]]; then
    folder=tests/golden/directory-v$2
    mkdir "$folder"
    serve
    publish many 5000
    publish few 20
    until_true 60 test -e "$data/volumes/00000001.rld" || fail "there is no volume"
    publish "général/ü" 20
    publish many 5100
    all >"$folder/records.jsonl"
    end_server
    tar --create --gzip --sort=name --owner=0 --group=0 --numeric-owner --file "$folder/data.tar.gz" -C "$data" .
    gzip --force --best "$folder/records.jsonl"
    du -k "$folder"/*
    exit
fi

for folder in tests/golden/directory-v*; do
    for stop in clean killed; do
        data=$work/$(basename "$folder")-$stop
        mkdir "$data"
        tar --extract --gzip --file "$folder/data.tar.gz" -C "$data"
        if [[ $stop == killed ]]; then rm "$data/clean"; fi
        "$ROOMLOG_BIN" check "$data"
        serve || fail "$folder, $stop: it does not open"
        gzip --decompress --stdout "$folder/records.jsonl.gz" >"$work/expected"
        all >"$work/found"
        cmp "$work/expected" "$work/found" || fail "$folder, $stop: something else is read"
        # Nothing of it is new; where the directory is so old that it is forgotten who published, it is refused.
        publish many 5100 || echo "the old publishes are too old to be repeated"
        all >"$work/found"
        cmp "$work/expected" "$work/found" || fail "$folder, $stop: a repeat was stored again"
        echo new | "$ROOMLOG_BIN" pub few --url "ws://127.0.0.1:$ws" --ack >"$work/offset"
        (($(cat "$work/offset") > 20)) || fail "$folder, $stop: a new record has the offset $(cat "$work/offset")"
        end_server || fail "the server ended with $?"
        "$ROOMLOG_BIN" check "$data"
        serve || fail "$folder, $stop: it does not open a second time"
        all | grep -v '"new"' >"$work/found"
        cmp "$work/expected" "$work/found" || fail "$folder, $stop: something else is read afterwards"
        end_server || fail "the server ended with $?"
        echo "$folder, $stop: $(wc -l <"$work/expected") records as they were"
    done
done
