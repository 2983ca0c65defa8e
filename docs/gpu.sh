#!/usr/bin/env bash
# One GPU, about ten minutes. Do CUDA's attention kernels pass the kit? Does the gain of the
# published energy gate survive prefix-only losses at the published size (arXiv 2605.26355)? Does
# Muon reach that recipe's loss in half of its steps?
#
#   docs/gpu.sh OUT                              with a GPU
#   docs/gpu.sh OUT cpu --steps 50 ...           the same on a CPU; any setting of compare
#
# The same command again goes on where it stopped. May be set: PYTHON, KERNELS, SEEDS (each takes
# six minutes of an H200) and HALF, the steps with Muon.
set -uo pipefail
out=${1:?name a folder for the results} device=${2:-cuda}
shift $(($# < 2 ? $# : 2))
here=$(cd "$(dirname "$0")" && pwd)
minattn=("${PYTHON:-python}" -m minattn)
mkdir -p "$out"

check() {                         # a function of gpu_kernels.py, its types, what it does not take
    local kernel=$1 types=$2 exclude=$3 dtype report
    case " ${KERNELS-flash efficient cudnn flex tiled} " in *" $kernel "*) ;; *) return ;; esac
    for dtype in $types; do
        report=$out/$kernel-$dtype
        [ -s "$report.json" ] && continue
        timeout 590 "${minattn[@]}" check "$here/gpu_kernels.py:$kernel" \
            --framework torch --device "$device" --dtype "$dtype" --sizes D=64,Dv=64 --quick \
            --time-limit 120 \
            ${exclude:+--exclude "$exclude"} --json "$report.json" > "$report.txt" 2>&1
        echo "$kernel $dtype: $(tail -n 1 "$report.txt")"
    done
}
check flash     "float16 bfloat16"         "window,prefix,allowed,bias,Tq!=Tk" &
check efficient "float16 bfloat16 float32" "" &
check cudnn     "float16 bfloat16"         bias,one_token &
check tiled     "float16 bfloat16 float32" window,prefix,allowed,bias,gradients &
flex=combinations                                   # compiled for each case: these take too long
[ "$device" = cpu ] && flex+=,gradients             # it has none there
for dtype in float16 bfloat16 float32; do check flex $dtype $flex & done

fast=(--chunks 1 --checkpoint-interval 1000 --autocast bfloat16)
[ "$device" = cuda ] && fast+=(--compile --workers 3)          # runs at a time, on the one GPU
"${minattn[@]}" compare --preset paper --out "$out/gate" --seeds "${SEEDS:-0}" \
    --engine torch --device "$device" "${fast[@]}" --attention "softmax,energy[norm=sequence]" \
    --variant "Muon, half the steps: optimizer=muon steps=${HALF:-2500}" "$@"
code=$?
wait
exit $code
