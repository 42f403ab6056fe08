#!/bin/bash
# One run on two machines: sbatch docs/slurm/several_machines.sh experiment=digits/rts (GPUs: --gpus-per-node=4
# --ntasks-per-node=4 on sbatch's line, trainer.devices=4 on the command's)
#SBATCH --job-name=latentrobust
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm_%j.txt
srun python -m latentrobust.train trainer=ddp trainer.devices=1 trainer.num_nodes="$SLURM_NNODES" "$@" \
    paths.output_dir="outputs/slurm_$SLURM_JOB_ID"
