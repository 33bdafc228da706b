#!/usr/bin/env bash
# Runs the AIPerf command given as arguments in the tmux session "benchmark", with its output
# in the pod's log, and ends with its exit code.
set -euo pipefail
here=$(dirname "$0")
export RETRY_S=${RETRY_S:-5}
export PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1 # lines reach the log as they are written

option() { # option NAME COMMAND...: the value of an option of the command
  local name=$1
  shift
  while (($# > 1)); do
    if [[ $1 == "$name" ]]; then
      printf '%s\n' "$2"
      return
    fi
    shift
  done
  echo "benchmark: the command has no $name" >&2
  return 2
}

retry() { # five tries
  local try
  for try in 1 2 3 4; do
    "$@" && return
    echo "benchmark: try $try of 5 failed: $*" >&2
    sleep "$RETRY_S"
  done
  "$@"
}

url=$(option --url "$@")
model=$(option -m "$@")
trace=$(option --input-file "$@")
artifacts=$(option --artifact-dir "$@")

if [[ -e $artifacts/finished.json ]]; then
  echo "benchmark: $artifacts is finished already; choose another RUN_ID" >&2
  exit 2
fi
if [[ -e $artifacts ]]; then # of a run that was cut off: keep it, apart
  mv "$artifacts" "$artifacts.unfinished-$(date -u +%Y%m%dT%H%M%SZ)"
fi

if ! command -v tmux >/dev/null; then
  retry apt-get -qq update
  retry apt-get -qq install --yes --no-install-recommends tmux
fi
# shellcheck disable=SC2086  # a list of requirements
retry python -m pip install --quiet --no-cache-dir $REQUIREMENTS
python "$here/steps.py" fetch "$trace"
python "$here/steps.py" ready "$url" "$model"

mkdir -p "$artifacts"
python -m pip freeze >"$artifacts/pip-freeze.txt"
log=$artifacts/console.log
code=$(mktemp)
: >"$log"
ulimit -n "$(ulimit -Hn)" # a connection for each request in flight
# shellcheck disable=SC2016  # the session's own shell expands it
tmux new-session -d -s benchmark -x 200 -y 50 \
  bash -c '"${@:3}" 2>&1 | tee -a "$2"; echo "${PIPESTATUS[0]}" >"$1"' \
  benchmark "$code" "$log" "$@"
trap 'tmux kill-session -t =benchmark || true; exit 143' TERM
while tmux has-session -t =benchmark 2>/dev/null; do sleep 1; done &
tail -n +1 -s 1 -f --pid=$! "$log" & # ends with the session
wait $!

status=$(<"$code")
if [[ -z $status ]]; then
  echo "benchmark: the session was ended before the command" >&2
  exit 125
fi
python "$here/steps.py" finish "$artifacts" "$status"
exit "$status"
