#!/usr/bin/env bash
# What docs/gpu.md records: the blocks of four models before and after the fix, on several ranks of one GPU, with
# flashinfer's kernels. Usage: docs/gpu.sh BEFORE AFTER [FOLDER]   (two trees; the reports go to FOLDER)
# Needs a GPU of the Hopper generation or later, nvcc, ninja, and `pip install '.[gpu]'`.
set -u
before=$1 after=$2 folder=${3:-gpu-reports}
mkdir -p "$folder"
export PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
python3 -c 'import platform, torch; print("Python", platform.python_version(), "torch", torch.__version__)'
python3 -c 'from importlib.metadata import version; print("flashinfer-python", version("flashinfer-python"))'
verify() {
    local name=$1
    shift
    echo "== moe-lint verify BEFORE AFTER $*"
    local started=$SECONDS
    python3 -m moe_lint verify "$before" "$after" "$@" -o text -o "json:$folder/$name.json" -o "html:$folder/$name.html"
    echo "exit status $?, $((SECONDS - started)) s"
}
models='qwen3_moe,deepseek_v2,glm4_moe,minimax_m2'
gpu=(--level block --device cuda --timeout 500 --jobs 4)
verify kernels --models "$models" "${gpu[@]}" --backend gloo --kernels flashinfer --world-size "${WORLD_SIZES:-2,4}"
verify torch --models "$models" "${gpu[@]}" --backend gloo --dtype float32 --world-size 2
verify threads --models "$models" "${gpu[@]}" --backend threads --kernels flashinfer --world-size 2
