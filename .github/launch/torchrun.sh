#!/bin/bash
# A run over several machines without a scheduler. On each of them, with the same HEAD and NODES, and NODE from 0:
#     HEAD=host0 NODES=2 NODE=0 .github/launch/torchrun.sh --dataset imagenet:DIR --backbone alexnet --out runs/big
# PROCESSES is the number on each machine, by default one for each GPU. The folder of the run is one that all machines see.
exec torchrun --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "${PROCESSES:-gpu}" \
    --master-addr "$HEAD" --master-port "${PORT:-29500}" -m avtcli pretrain "$@"
