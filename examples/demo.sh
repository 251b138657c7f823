#!/bin/sh
# The whole path on a small model, in one call: importance, candidates, their divergence, the best of each, card and page.
set -eu
cd "$(dirname "$0")/.."
model=examples/tiny-qwen3-moe
out=demo-output
rm -rf $out

step() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

step quantmill squeeze $model --types Q4_K_M,IQ3_M --size 4MiB --calibration $model/calibration.txt \
    --evaluation $model/evaluation.txt --chunks 8 --imatrix-chunks 24 --compensate --learn-chunks 16 --hours 0 -o $out
step python examples/say.py $out/tiny-qwen3-moe-4MiB.gguf "It is a truth universally acknowledged, that"
printf '\nThe page: %s\n' "$PWD/$out/index.html"
