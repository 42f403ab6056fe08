#!/bin/bash
# Workers of a sweep, one per task of the array: sbatch docs/slurm/workers.sh outputs/seeds
#SBATCH --job-name=workers
#SBATCH --array=0-1
#SBATCH --cpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm_%A_%a.txt
srun python -m latentrobust.sweep work "$1"
