#!/usr/bin/env bash
# A small suite with the lowest and the highest versions that setup.cfg allows, and with transformers 5 before its change of keys (5.6).
#   benchmarks/oldest_versions.sh FOLDER            fresh environments in FOLDER, 6 GB each (needs the package index)
#   benchmarks/oldest_versions.sh FOLDER --share    torch and monai of this Python, the other packages laid over them: 200 MB each
# Run it before a release.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
share=${2:-}
suite=(
  tests/models/test_inpainter.py tests/models/test_portable_folder.py tests/models/test_folder_slots.py tests/models/test_sources.py
  tests/transforms/test_local_inpaintd.py tests/training/recipes/test_inpaint_recipe.py tests/training/test_lora.py
)
lowest="transformers==4.48.0 tokenizers==0.21.0 huggingface_hub==0.27.1 diffusers==0.32.0 peft==0.14.0"
before_the_change="transformers==5.4.0 tokenizers==0.22.2 huggingface_hub==1.5.0 diffusers==0.36.0 httpx httpcore h11 anyio sniffio"

check() { # name, packages of the transformers family, further packages of a fresh environment
  local python=python path=""
  if [ "$share" = --share ]; then
    path="$folder/$1"
    # shellcheck disable=SC2086
    [ -z "$2" ] || python -m pip install --quiet --no-deps --upgrade --target "$path" $2
  else
    python -m venv "$folder/$1"
    python="$folder/$1/bin/python"
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet -e ".[test]" $2 $3
  fi
  echo "== $1: $(PYTHONPATH=$path "$python" -c 'import diffusers, monai, torch, transformers; print(*(f"{m.__name__} {m.__version__}" for m in (monai, torch, diffusers, transformers)))' 2>/dev/null)"
  PYTHONPATH=$path "$python" -m pytest -p no:cacheprovider -m "not slow" "${suite[@]}" || failed=1
}

failed=0
check lowest "$lowest" "monai==1.5.0 torch==2.5.0 torchvision==0.20.0 numpy<2.3"
check before_the_change "$before_the_change" ""
check highest "" "--upgrade"
exit $failed
