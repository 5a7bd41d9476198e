#!/usr/bin/env bash
# What only a GPU can show, in one command and at most 10 minutes, from a checkout that need not be installed:
#
#   bash bench/gpu.sh [--seconds N] [--only STAGE,STAGE...] OUT_FOLDER
#
# Stages: environment, tests, memcheck, racecheck, tune, speed. Each has a time limit and runs whatever became of those
# before it. OUT_FOLDER gets STAGE.log, tune.json and speed.json. The status is 1 if a stage failed, was stopped or was
# not reached. Packages that python3 lacks can lie in .whl/ as wheels. Needs Linux, PyTorch, Triton and pytest.
set -uo pipefail

usage() {
  echo "usage: bash bench/gpu.sh [--seconds N] [--only STAGE,STAGE...] OUT_FOLDER" >&2
  exit 2
}

SECONDS=0
deadline=590
stages=environment,tests,memcheck,racecheck,tune,speed
while [[ ${1-} == --* ]]; do
  case $1 in
    --seconds) [[ ${2-} =~ ^[1-9][0-9]*$ ]] || usage; deadline=$2 ;;
    --only) [[ ${2-} =~ ^[a-z,]+$ ]] || usage; stages=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[[ $# -eq 1 ]] || usage
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

site=$work/site
cd "$root" || exit 2
export PYTHONPATH=$root:$site PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
if compgen -G "$root/.whl/*.whl" >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$root"/.whl/*.whl ||
    echo "gpu.sh: the wheels of .whl/ could not be installed" >&2
fi

summary=()
failed=0
note() { summary+=("$(printf '%-12s %s' "$1" "$2")"); }

# stage NAME LIMIT COMMAND...: runs the command for at most LIMIT seconds and notes what became of it.
stage() {
  local name=$1 limit=$2 began=$SECONDS status log=$out/$1.log
  shift 2
  [[ ,$stages, == *,$name,* ]] || return 0
  ((limit <= deadline - SECONDS)) || limit=$((deadline - SECONDS))
  if ((limit < 1)); then
    note "$name" "NOT REACHED"
    failed=1
    return
  fi
  # An interrupt first: what pytest and the benchmarks have by then they still write.
  timeout --signal=INT --kill-after=5 "$limit" "$@" >"$log" 2>&1
  status=$?
  printf '\n== %s\n' "$name"
  tail -n 30 "$log"
  if ((status == 0)); then
    note "$name" "passed in $((SECONDS - began)) s"
  elif grep -q "Device not supported" "$log"; then
    note "$name" "skipped: compute-sanitizer does not support this device"
  else
    failed=1
    if ((status == 124 || status == 137)); then
      note "$name" "STOPPED after $((SECONDS - began)) s"
    else
      note "$name" "FAILED with status $status in $((SECONDS - began)) s"
    fi
  fi
}

has() { python3 -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null; }

stage environment 60 bash -c 'nvidia-smi; python3 -c "
import platform, torch, triton
import fastindrnn
print(fastindrnn.__file__)
print(platform.python_version(), torch.__version__, triton.__version__, torch.version.cuda)
print(torch.cuda.get_device_properties(0))
"'

# The tests that run on a GPU where there is one, without those whose packages are missing.
tests=()
for file in "$root"/tests/test_*.py; do
  grep -q 'cuda\.is_available' "$file" || continue
  if grep -q '^from hypothesis' "$file" && ! has hypothesis; then
    echo "gpu.sh: ${file##*/} is left out: no hypothesis" >&2
    continue
  fi
  tests+=("$file")
done
options=(-p no:cacheprovider -W default -q --durations 5)
if has xdist; then options+=(-n 8); fi
# PyTorch's products are deterministic, as the tests ask for, only with a workspace of this kind.
stage tests 170 env CUBLAS_WORKSPACE_CONFIG=:4096:8 python3 -m pytest "${options[@]}" "${tests[@]}"

# Small launches of odd sizes with every option. The tests check values; here it is where they read and write.
cat >"$work/launches.py" <<'PYTHON'
import sys

import torch
from fastindrnn.kernels import launch

kinds, device = sys.argv[1].split(","), sys.argv[2]
generator = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=generator).to(device, dtype)


for dtype in (torch.bfloat16, torch.float32):
    for B, T, K, N in ((3, 70, 40, 71), (1, 300, 64, 64)):
        x, weight, bias, h0 = normal(B, T, K), normal(N, K), normal(N), normal(B, N)
        u = torch.rand(N, generator=generator).to(device)
        lengths = torch.randint(0, T + 1, (B,), generator=generator).to(device)
        resets = (torch.rand(B, T, generator=generator) < 0.1).to(device)
        a, grad_h, h = normal(B, T, N), normal(B, T, N), torch.empty(B, T, N).to(device, dtype)
        for reverse in (False, True):
            options = {"lengths": lengths, "resets": resets, "reverse": reverse}
            if "scan" in kinds:
                for chunks in (1, 4):
                    launch.scan_forward(a, u, h0, h, **options, chunks=chunks)
                    launch.scan_backward(
                        grad_h, None, h, u, h0, **options, grad_clip=1.0, chunks=chunks
                    )
            if "layer" in kinds:
                for strategy in ("fused", "split"):
                    arguments = x, weight, bias, u, h0, h
                    launch.indrnn_forward(*arguments, strategy=strategy)
                    launch.indrnn_forward(*arguments, **options, strategy=strategy)
        if device == "cuda":
            torch.cuda.synchronize()
print("launched", *kinds)
PYTHON

sanitizer=
for candidate in compute-sanitizer /usr/local/cuda/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer; do
  sanitizer=$(command -v "$candidate") && break
done
sanitize() {
  local tool=$1 limit=$2 kinds=$3
  if [[ -z $sanitizer ]]; then
    [[ ,$stages, != *,$tool,* ]] || note "$tool" "skipped: there is no compute-sanitizer"
    return
  fi
  # Without PyTorch's cache of memory every tensor is an allocation with an end.
  stage "$tool" "$limit" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
    python3 "$work/launches.py" "$kinds" cuda
}
sanitize memcheck 50 scan,layer
sanitize racecheck 30 layer

stage tune 140 python3 -m bench tune --device cuda --seconds 115 --out "$out/tune.json"
stage speed 180 python3 -m bench speed --device cuda --out "$out/speed.json"

printf '\n%s s in all; logs and JSON in %s\n' "$SECONDS" "$out"
printf '%s\n' "${summary[@]}"
exit "$failed"
