#!/usr/bin/env bash
# All objectives of "What to expect" in the README under one protocol, in one go: pretrained, probed layer by layer, compared.
#
#     tests/benchmarks/objectives.sh FOLDER [OPTION of avt pretrain...]
#
# WIDTH, IMAGES, EPOCHS, SEEDS and LAYERS are those of the README; JOBS runs share the machine. On a GPU, at full size:
#
#     WIDTH=1 IMAGES=60000 EPOCHS=20 JOBS=4 tests/benchmarks/objectives.sh runs/full --batch-size 512 --no-compile
#
# On a CPU without bf16 arithmetic give --precision fp32. What is there already is not done again.
set -euo pipefail
export FOLDER=$1 WIDTH=${WIDTH:-0.25} IMAGES=${IMAGES:-10000} EPOCHS=${EPOCHS:-8} LAYERS=${LAYERS:-conv1,conv2,conv3,conv4}
shift
export OPTIONS="--dataset fashion-mnist --limit-train $IMAGES -o backbone.width=$WIDTH --epochs $EPOCHS --precision bf16 $*"
mkdir -p "$FOLDER"

measure() { # NAME SEED FLAGS...
    run=$FOLDER/$1-$2 seed="--seed $2"
    [ -e "$run/result.json" ] || avt pretrain $OPTIONS $seed --out "$run" "${@:3}"
    probe="avt probe $run --layer $LAYERS --limit-train $IMAGES $seed --no-baseline --out $run"
    [ -e "$run/knn.json" ] || $probe/knn.json --head knn --pool avg
    [ -e "$run/linear.json" ] || $probe/linear.json --pool max
    [ -e "$run/mlp2.json" ] || $probe/mlp2.json --pool max --head mlp2
    [ -e "$run/shots.json" ] || $probe/shots.json --pool max --shots 20
    [ -e "$run/equivariance.json" ] ||
        avt evaluate "$run" --transform projective -o transform.target=parameters $seed --out "$run/equivariance.json"
}
export -f measure

angles="-o transform.affine.angle_deg=15 -o transform.affine.shear_deg=10"
for seed in ${SEEDS:-0 1 2}; do
    echo "avt $seed"
    echo "coefficients $seed -o transform.target=coefficients"
    echo "gaussian $seed --objective gaussian -o transform.target=coefficients"
    echo "aet $seed --objective aet"
    echo "aetv2 $seed --objective aetv2"
    echo "rotnet $seed --objective rotnet --transform rotation"
    echo "simclr $seed --objective simclr --transform affine+photometric $angles"
done | xargs -P "${JOBS:-1}" -I{} bash -euo pipefail -c "measure {} > /dev/null 2>> '$FOLDER/log'"
avt compare "$FOLDER"/*/
