#!/usr/bin/env bash
# What docs/gpu.md records of NCCL: blocks before and after the fix with a GPU for each rank, by ranks that the runtime
# starts and by ranks that torchrun starts. Usage: docs/gpu-nccl.sh BEFORE AFTER [FOLDER]   (the reports go to FOLDER)
# MODELS, WORLD_SIZES (default: 2, and 4 or 8 where there are as many GPUs) and PARTS can be set. CUDA and NCCL start once
# per block, level and world size: the ranks' processes are kept for all launches.
# Needs 2 GPUs or more; for the parts `flashinfer*` of the Hopper generation or later, with nvcc and ninja.
set -u
before=$1 after=$2 folder=${3:-gpu-nccl-reports}
models=${MODELS:-qwen3_moe,deepseek_v2,glm4_moe,minimax_m2}
gpus=$(nvidia-smi --query-gpu=uuid --format=csv,noheader | wc -l)
sizes=${WORLD_SIZES:-$(for n in 2 4 8; do [ "$n" -le "$gpus" ] && echo "$n"; done)}
parts=${PARTS:-nccl nccl-layer torchrun torchrun-layer flashinfer torchrun-flashinfer torchrun-gloo}
mkdir -p "$folder"
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
nvidia-smi topo -m | head -n $((gpus + 1))
python3 -c 'import platform, torch; print("Python", platform.python_version(), "torch", torch.__version__, "NCCL", torch.cuda.nccl.version())'
python3 -c 'from importlib.metadata import version; print("flashinfer-python", version("flashinfer-python"))' 2>/dev/null
timed() {
    local name=$1
    shift
    echo "== $*"
    local started=$SECONDS
    "$@" -o text -o "json:$folder/$name.json" -o "html:$folder/$name.html" 2>"$folder/$name.err"
    local status=$?
    echo "exit status $status, $((SECONDS - started)) s"
    [ "$status" -eq 0 ] || tail -n 5 "$folder/$name.err"
}
common=("$before" "$after" --models "$models" --timeout 500 --quiet)
for size in $sizes; do
    run=(python3 -m moe_lint verify "${common[@]}" --backend nccl --world-size "$size" --jobs 2)
    ranks=(python3 -m torch.distributed.run --standalone --nproc-per-node "$size" -m reference_runtime "${common[@]}")
    for part in $parts; do
        case $part in
        nccl) timed "$part-$size" "${run[@]}" --level block --dtype float32 ;;
        nccl-layer) timed "$part-$size" "${run[@]}" --level layer --dtype float32 ;;
        flashinfer) timed "$part-$size" "${run[@]}" --level block --kernels flashinfer ;;
        torchrun) timed "$part-$size" "${ranks[@]}" --backend nccl --level block --dtype float32 ;;
        torchrun-layer) timed "$part-$size" "${ranks[@]}" --backend nccl --level layer --dtype float32 ;;
        torchrun-flashinfer) timed "$part-$size" "${ranks[@]}" --backend nccl --level block --kernels flashinfer ;;
        torchrun-gloo) timed "$part-$size" "${ranks[@]}" --backend gloo --level block ;;
        *) echo "no such part: $part" ;;
        esac
    done
done
