#!/bin/bash
# A run over several machines: sbatch .github/launch/slurm.sh --dataset imagenet:DIR --backbone alexnet
# Two minutes before its time is over the run saves its state, and the job queues itself again and goes on. The folder of the
# run, runs/slurm-JOB, is one that all machines see.
#SBATCH --job-name=avt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

run="runs/slurm-$SLURM_JOB_ID"
if [ -e "$run" ]; then
    set -- --resume "$run"
else
    set -- "$@" --out "$run"
fi
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=120 avt pretrain "$@"  # one task for each GPU; where one ends, the others end within two minutes
code=$?
if [ "$code" -eq 138 ]; then  # 128 + USR1: the state is saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
