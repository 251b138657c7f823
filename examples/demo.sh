#!/bin/sh
# The whole path on a small model: convert, measure importance, quantize three recipes, evaluate, report.
set -eu
cd "$(dirname "$0")/.."
model=examples/tiny-qwen3-moe
out=demo-output
rm -rf $out
mkdir -p $out

step() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

step quantmill convert $model $out/f16.gguf --type f16
step quantmill imatrix $out/f16.gguf -f $model/calibration.txt -o $out/imatrix.gguf --chunks 24
step quantmill imatrix stats $out/imatrix.gguf --suggest --share 0.5 --plot $out/importance.html
step quantmill quantize --imatrix $out/imatrix.gguf $out/f16.gguf $out/Q4_K_M.gguf Q4_K_M
step quantmill quantize --imatrix $out/imatrix.gguf --tensor-type 'blk\.[03]\.ffn_down_exps=Q6_K' \
    --tensor-type 'attn_(q|k)=Q5_K' $out/f16.gguf $out/IQ3_S-layerwise.gguf IQ3_S
step quantmill quantize --imatrix $out/imatrix.gguf --prune-layers 2 $out/f16.gguf $out/Q4_K_M-pruned.gguf Q4_K_M
step quantmill evaluate --base $out/f16.gguf --text $model/evaluation.txt --chunks 8 -o $out/evaluation.json \
    $out/Q4_K_M.gguf $out/IQ3_S-layerwise.gguf $out/Q4_K_M-pruned.gguf
step quantmill report $out/evaluation.json --imatrix $out/imatrix.gguf -o $out/report
step python examples/say.py $out/Q4_K_M.gguf "It is a truth universally acknowledged, that"
printf '\nThe page: %s\n' "$PWD/$out/report/index.html"
