#!/usr/bin/env bash
# What only a GPU can show, in at most 10 minutes, from a checkout that need not be installed:
#
#   bash bench/gpu.sh [--seconds N] [--only STAGE,STAGE...] OUT_FOLDER
#
# Stages: environment, tests, memcheck, racecheck, tune, speed. Each has a time limit and runs
# whatever became of those before it. OUT_FOLDER gets STAGE.log, tune.json and speed.json. The
# status is 1 if a stage failed, was stopped or was not reached. Needs Linux, PyTorch, Triton and
# pytest; further packages may lie in a folder that PYTHONPATH names.
set -uo pipefail

usage() {
  echo "usage: bash bench/gpu.sh [--seconds N] [--only STAGE,STAGE...] OUT_FOLDER" >&2
  exit 2
}

SECONDS=0 deadline=590 stages=environment,tests,memcheck,racecheck,tune,speed failed=0 summary=()
while [[ ${1-} == --* ]]; do
  case "$1 ${2-}" in
    "--seconds "[1-9]*) deadline=$2 ;;
    "--only "[a-z]*) stages=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[[ $# -eq 1 ]] || usage
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# stage NAME LIMIT COMMAND...: runs the command for at most LIMIT seconds, notes what became of it.
stage() {
  local name=$1 limit=$2 began=$SECONDS became
  shift 2
  [[ ,$stages, == *,$name,* ]] || return 0
  ((limit <= deadline - SECONDS)) || limit=$((deadline - SECONDS))
  if ((limit < 1)); then
    became="NOT REACHED"
  else
    printf '\n== %s\n' "$name"
    # An interrupt first: what pytest and the benchmarks have by then they still write.
    timeout --signal=INT --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
    case $? in
      0) became="passed" ;;
      124 | 137) became="STOPPED" ;;
      *) became="FAILED" ;;
    esac
    became+=" after $((SECONDS - began)) s"
    tail -n 30 "$out/$name.log"
    if grep -qE "Device not supported|compute-sanitizer.*No such file" "$out/$name.log"; then
      became="skipped: no compute-sanitizer for this device"
    fi
  fi
  [[ $became =~ ^(passed|skipped) ]] || failed=1
  summary+=("$(printf '%-12s %s' "$name" "$became")")
}

stage environment 60 bash -c 'nvidia-smi; python3 -m fastindrnn'

# The tests that run on a GPU where there is one. PyTorch's products are deterministic, as they ask
# for, only with such a workspace; a file whose packages are missing fails, and the others run.
mapfile -t tests < <(grep -lE 'cuda\.is_available|mark\.triton' tests/test_*.py)
tests+=(-p no:cacheprovider -W default -q --durations 5 --continue-on-collection-errors)
if python3 -c "import xdist" 2>/dev/null; then tests+=(-n 8); fi
stage tests 170 env CUBLAS_WORKSPACE_CONFIG=:4096:8 python3 -m pytest "${tests[@]}"

# Without PyTorch's cache of memory every tensor is an allocation with an end.
PATH=$PATH:/usr/local/cuda/bin:$(printf '%s:' /opt/nvidia/*/)
sanitizer=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9)
stage memcheck 50 "${sanitizer[@]}" --tool memcheck python3 -m bench.launches cuda scan layer
stage racecheck 30 "${sanitizer[@]}" --tool racecheck python3 -m bench.launches cuda layer

stage tune 140 python3 -m bench tune --device cuda --seconds 115 --out "$out/tune.json"
stage speed 180 python3 -m bench speed --device cuda --out "$out/speed.json"

printf '\n%s s in all; logs and JSON in %s\n' "$SECONDS" "$out"
printf '%s\n' "${summary[@]}"
exit "$failed"
