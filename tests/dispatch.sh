# Sourced by the longer tiers: runs the scripts of a folder and says what came of each.
#
# A script ends with 0 when it passes, with 77 when a tool is missing, with anything else when it fails.

# dispatch NAME FOLDER [SCRIPT…]: runs these scripts of the folder, or all of them.
dispatch() {
    local name=$1 folder=$2
    shift 2
    local scripts=("$@") script path started code passed=0 skipped=0 failed=0
    if ((${#scripts[@]} == 0)); then
        for path in "$folder"/*.sh; do
            scripts+=("$(basename "$path" .sh)")
        done
    fi
    for script in "${scripts[@]}"; do
        path="$folder/${script%.sh}.sh"
        if [[ ! -f $path ]]; then
            echo "$name: there is no $path" >&2
            return 2
        fi
    done
    for script in "${scripts[@]}"; do
        echo "=== $script"
        started=$SECONDS
        code=0
        bash "$folder/${script%.sh}.sh" </dev/null || code=$?
        case $code in
        0) passed=$((passed + 1)) && echo "=== $script ok in $((SECONDS - started)) s" ;;
        77) skipped=$((skipped + 1)) && echo "=== $script SKIPPED !!!" ;;
        *) failed=$((failed + 1)) && echo "=== $script FAILED with $code after $((SECONDS - started)) s" ;;
        esac
    done
    echo "$name: $passed passed, $failed failed, $skipped SKIPPED after $SECONDS s"
    ((failed == 0))
}

# need COMMAND HOW: ends the script as skipped when a command is missing.
need() {
    if ! command -v "$1" >/dev/null; then
        echo "SKIPPED: this needs $1 ($2)" >&2
        exit 77
    fi
}

# need_root: ends the script as skipped when it is not run by root.
need_root() {
    if ((EUID != 0)); then
        echo "SKIPPED: this needs root" >&2
        exit 77
    fi
}
