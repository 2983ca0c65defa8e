#!/usr/bin/env bash
# One GPU, about ten minutes: does the gain of the published energy gate survive prefix-only losses
# at the published size (arXiv 2605.26355)? Do CUDA's attention kernels pass the kit?
#
#   docs/gpu.sh OUT                              with a GPU
#   docs/gpu.sh OUT cpu --steps 50 ...           the same on a CPU; any setting of compare
#
# The same command again goes on where it stopped. PYTHON and KERNELS may be set.
set -uo pipefail
out=${1:?name a folder for the results} device=${2:-cuda}
shift $(($# < 2 ? $# : 2))
here=$(cd "$(dirname "$0")" && pwd)
minattn=("${PYTHON:-python}" -m minattn)
mkdir -p "$out"

fast=(--chunks 1 --checkpoint-interval 1000 --autocast bfloat16)
[ "$device" = cuda ] && fast+=(--compile --workers 3)          # runs at a time, on the one GPU
timeout -s INT 420 "${minattn[@]}" compare --preset paper --out "$out/gate" \
    --attention "softmax,energy[norm=sequence]" --seeds 0-2 \
    --engine torch --device "$device" "${fast[@]}" "$@"
code=$?

check() {                         # a function of gpu_kernels.py, its types, what it does not take
    local kernel=$1 types=$2 exclude=$3 dtype report limit=80
    [ "$device" = cpu ] && limit=600                            # seconds; no GPU is waiting
    case " ${KERNELS:-flash efficient cudnn flex tiled} " in *" $kernel "*) ;; *) return ;; esac
    for dtype in $types; do
        report=$out/$kernel-$dtype
        [ -s "$report.json" ] && continue
        timeout $((limit + 10)) "${minattn[@]}" check "$here/gpu_kernels.py:$kernel" \
            --framework torch --device "$device" --dtype "$dtype" --sizes D=16,Dv=16 --quick \
            --time-limit "$limit" \
            ${exclude:+--exclude "$exclude"} --json "$report.json" > "$report.txt" 2>&1
        echo "$kernel $dtype: $(tail -n 1 "$report.txt")"
    done
}
check flash     "float16 bfloat16"         window,prefix,allowed,bias,align=end
check efficient "float16 bfloat16 float32" ""
check cudnn     "float16 bfloat16"         ""
check tiled     "float16 bfloat16 float32" window,prefix,allowed,bias,gradients
flex=""
[ "$device" = cpu ] && flex=gradients                          # it has none there
check flex      "float16 bfloat16 float32" "$flex"
exit $code
