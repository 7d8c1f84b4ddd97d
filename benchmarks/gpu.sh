#!/usr/bin/env bash
# All work that needs a GPU, in one command of at most 9 minutes: tests/cuda, then training, then the GPU rows of the speed tables.
#
#   benchmarks/gpu.sh pack PACKS [DATA SET ...]   with a network and no GPU: wheels and data into one folder
#   benchmarks/gpu.sh                             with a GPU and no network; the same command goes on where it stopped
#
# Variables, with their defaults:
#   GPU_FOLDER=.gpu       wheels/, data/ and state/ of the run; state/ says what is done, remove it to begin again
#   OUT=$GPU_FOLDER/out   results: *.log, speed_*.json, inpainter/ (half precision), stages.tsv (stage, seconds, exit status)
#   GPU_MINUTES=9         for all stages together; a stage that is cut goes on with the next call
#   GPU_DEVICE=cuda       cpu is for the dry run
#   GPU_DRY_RUN=          1: few steps and quick measurements, to see on a CPU that the script works
#   GPU_PYTHON=python3    needs torch, torchvision, transformers, safetensors and pytest; the wheels bring the rest
#   GPU_PLATFORM_PYTHON=3.12   Python version of the GPU machine, for "pack"
set -uo pipefail
cd "$(dirname "$0")/.."
started=$(date +%s)
folder=${GPU_FOLDER:-.gpu}
out=${OUT:-$folder/out}
minutes=${GPU_MINUTES:-9}
device=${GPU_DEVICE:-cuda}
dry=${GPU_DRY_RUN:-}
python=${GPU_PYTHON:-python3}
state=$folder/state
# what a common GPU image with torch and transformers lacks
wheels=(monai diffusers segment-anything nibabel pydicom importlib-metadata importlib-resources)

if [ "${1:-}" = pack ]; then
    [ $# -ge 2 ] || { echo "usage: benchmarks/gpu.sh pack PACKS [DATA SET ...]" >&2; exit 2; }
    packs=$2
    shift 2
    rm -rf "$folder/wheels" "$folder/data"
    mkdir -p "$folder/wheels"
    pins=$("$python" -c 'import sys; from importlib.metadata import version; print(*(f"{name}=={version(name)}" for name in sys.argv[1:]))' "${wheels[@]}") || exit 1
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${GPU_PLATFORM_PYTHON:-3.12}" -d "$folder/wheels" $pins || exit 1
    "$python" -m monai_diffaug.training.embedded.pack_datalist --packs "$packs" --out "$folder/data" ${1:+--only "$@"} || exit 1
    du -sh "$folder/wheels" "$folder/data"
    exit 0
fi

[ -f "$folder/data/datalist.json" ] || { echo "$folder/data/datalist.json is missing; run first: benchmarks/gpu.sh pack PACKS" >&2; exit 2; }
mkdir -p "$out" "$state"
if compgen -G "$folder/wheels/*.whl" > /dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$folder"/wheels/*.whl || exit 1
    export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
else
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1

left() { echo $((started + minutes * 60 - $(date +%s))); }

# stage NAME SECONDS COMMAND...: runs a command for SECONDS at most, and not again once it has ended by itself
stage() {
    local name=$1 seconds=$2 status begun
    shift 2
    [ -e "$state/$name.done" ] && { echo "== $name: done before"; return 0; }
    [ "$seconds" -gt "$(left)" ] && seconds=$(left)
    [ "$seconds" -lt 5 ] && { echo "== $name: no time left; run the command again"; return 1; }
    echo "== $name: at most $seconds s"
    begun=$(date +%s)
    timeout --signal=TERM --kill-after=20 "$seconds" "$@" > "$out/$name.log" 2>&1
    status=$?
    printf '%s\t%s\t%s\n' "$name" $(($(date +%s) - begun)) "$status" >> "$out/stages.tsv"
    tail -n 4 "$out/$name.log"
    # 124 and 143: cut by its limit, so it goes on with the next call; else it has ended, well or not
    case $status in 124 | 137 | 143) echo "== $name: cut after $seconds s"; return 1 ;; esac
    [ "$status" = 0 ] && touch "$state/$name.done"
    [ "$status" = 0 ] || echo "== $name: exit status $status, see $out/$name.log"
    return "$status"
}

failed=0
tests=(tests/cuda tests/models/test_cuda_graphs.py)
training=(--minutes $((minutes > 4 ? minutes * 2 / 5 : 1)) --batch-size 64 --precision bfloat16)
measurements=(inpainting medsam training-step scaling)
speed=()
if [ -n "$dry" ]; then
    tests=(tests/cuda/test_on_a_real_gpu.py)
    training=(--steps 2 --batch-size 2)
    measurements=(training-step)
    speed=(--quick --rounds 1)
fi

stage tests 150 "$python" -m pytest -q --maxfail=20 -p no:cacheprovider "${tests[@]}" || failed=1
if stage training $((minutes * 30)) "$python" -m monai_diffaug train inpaint --data "$folder/data/datalist.json" --out "$state/inpaint" \
    --no-decoder --text-encoder --rate 4e-4 --device "$device" --pictures 2 "${training[@]}"; then
    [ -e "$out/inpainter/model_index.json" ] || "$python" - "$state/inpaint" "$out/inpainter" << 'END' || failed=1
import sys
from pathlib import Path
from monai_diffaug.training.embedded.embed import embed
print(embed(Path(sys.argv[1]), Path(sys.argv[2])), "bytes:", sys.argv[2])
END
else
    failed=1
fi
for subject in "${measurements[@]}"; do
    stage "speed_$subject" 200 "$python" -m monai_diffaug evaluate speed "$subject" --device "$device" --out "$out/speed_$subject.json" "${speed[@]}" || failed=1
done
echo "== $(($(date +%s) - started)) s; results in $out"
column -t "$out/stages.tsv" 2> /dev/null || cat "$out/stages.tsv"
exit $failed
