#!/usr/bin/env bash
# Installs what uv.lock pins into $UV_PROJECT_ENVIRONMENT, and PyTorch from where $TORCH says: see the Dockerfile.
set -euo pipefail

extras=(--extra train --extra stores --extra registry)
locked=$(uv export --frozen --no-dev "${extras[@]}" --no-emit-project --no-hashes --no-annotate --no-header)
kfp=$(uv export --frozen --no-dev --extra kubeflow --no-emit-project --no-hashes --no-annotate --no-header | grep -oE '^kfp==[^ ;]+')
pytorch=$(grep -oE '^torch==[^ ;]+' <<<"$locked")
torchaudio=$(grep -oE '^torchaudio==[^ ;]+' <<<"$locked")
# Only the CUDA build of PyTorch needs these; uv.lock has that build because it is the default on Linux.
mapfile -t cuda < <(grep -oE '^(torch|triton|cuda-[a-z0-9-]+|nvidia-[a-z0-9-]+)\b' <<<"$locked" | grep -v '^torchaudio')

skip=()
case $TORCH in
    cpu) for package in "${cuda[@]}" torchaudio; do skip+=(--no-install-package "$package"); done ;;
    base) for package in "${cuda[@]}"; do skip+=(--no-install-package "$package"); done ;;
    locked) ;;
    *) echo "TORCH must be cpu, locked or base, got '$TORCH'" >&2; exit 1 ;;
esac

venv=(--python "$(command -v python3)")
[ "$TORCH" != base ] || venv+=(--system-site-packages)
uv venv --quiet "${venv[@]}" "$UV_PROJECT_ENVIRONMENT"
uv sync --frozen --no-dev "${extras[@]}" --no-install-project "${skip[@]}"
if [ "$TORCH" = cpu ]; then
    uv pip install --no-deps --torch-backend cpu "$pytorch" "$torchaudio" || {
        echo "The index of PyTorch's CPU builds cannot be reached. Build with TORCH=locked: PyTorch from uv.lock," \
            "the CUDA build, which runs on a CPU too and is some gigabytes larger." >&2
        exit 1
    }
fi
# Steps run only kfp's executor, which does not need kfp's dependencies for compiling and submitting.
uv pip install --no-deps "$kfp"

"$UV_PROJECT_ENVIRONMENT/bin/python" - "${pytorch#torch==}" <<'PYTHON'
import sys
import torch, torchaudio
if torch.__version__.split("+")[0] != sys.argv[1]:
    sys.exit(f"torch must be {sys.argv[1]}, as uv.lock says, got {torch.__version__}: choose another BASE_IMAGE")
PYTHON
