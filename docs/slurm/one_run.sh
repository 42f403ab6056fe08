#!/bin/bash
# One run that goes on where it was when its time is over: sbatch docs/slurm/one_run.sh experiment=digits/rts
#SBATCH --job-name=latentrobust
#SBATCH --cpus-per-task=2
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm_%j.txt
srun python -m latentrobust.train "$@" paths.output_dir="outputs/slurm_$SLURM_JOB_ID"
