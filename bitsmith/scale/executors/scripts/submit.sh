#!/bin/bash
# Submits the array job, and behind it the job that puts the results together.
set -e
job=$(sbatch --parsable {folder}/members.sbatch)
sbatch --dependency=afterany:"${{job%%;*}}" {folder}/join.sbatch
