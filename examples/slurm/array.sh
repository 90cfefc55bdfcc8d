#!/usr/bin/env bash
#SBATCH --job-name=agiqa
#SBATCH --array=0-7
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=agiqa-%A-%a.log
#
# One study on many machines: each task of this array runs its share of the study's cells in a clone of its own and
# pushes each result to the DVC remote as soon as it is there. docs/scale.md has the whole procedure, which ends with
# `agiqa gather`. Submit it from the study's folder; a GPU is asked for as usual (sbatch --gres=gpu:1 ...).
#
#   MLFLOW_TRACKING_URI=http://server:5000 sbatch --array=0-7 examples/slurm/array.sh
#
# A task that was killed, or requeued, goes on in its clone: a finished cell is not run again, and a training begins
# after its last finished epoch. To start some tasks again by hand, say of how many shares they are:
#
#   AGIQA_SHARES=8 sbatch --array=3,5 examples/slurm/array.sh
#
# AGIQA_STUDY    the study's git repository, committed, with .venv in it; default: where sbatch was called
# AGIQA_CLONES   where the clones lie, on a disk that outlives the task; default: beside the study, in STUDY-clones
# AGIQA_SHARES   into how many shares the cells are dealt; default: the number of tasks in the array
set -euo pipefail

study=${AGIQA_STUDY:-$SLURM_SUBMIT_DIR}
shares=${AGIQA_SHARES:-$SLURM_ARRAY_TASK_COUNT}
share=$SLURM_ARRAY_TASK_ID
place=${AGIQA_CLONES:-$study-clones}/$share
export PATH="$study/.venv/bin:$PATH"
unset DVC_ROOT PYTHONPATH # of whoever called: the clone is its own root, and runs its own code

if [ ! -d "$place" ]; then
  mkdir -p "$(dirname "$place")"
  git clone --quiet "$study" "$place.partial.$$"
  mv -T "$place.partial.$$" "$place"
fi
cd "$place"
commit=$(git -C "$study" rev-parse HEAD)
if [ "$(git rev-parse HEAD)" != "$commit" ]; then
  git fetch --quiet origin
  git checkout --quiet --force --detach "$commit" # of the clone's own files, dvc.lock alone ever changes
fi
[ ! -f "$study/.dvc/config.local" ] || cp "$study/.dvc/config.local" .dvc/config.local

# What all cells read, named by the committed dvc.lock; not the raw data, which none of them needs.
python -m dvc pull code preprocess split features index || {
  echo "The shared stages are not in the remote: dvc repro index && dvc push --run-cache, and commit dvc.lock" >&2
  exit 1
}
cells=$(python -m pipeline.cli cells --share "$share/$shares")
failed=0
while read -r -a stages; do
  [ "${#stages[@]}" -gt 0 ] || continue # more tasks than cells
  # What others, or this task before it was killed, have pushed comes back and is not run again.
  if python -m dvc repro --pull --allow-missing "${stages[@]}" </dev/null && python -m dvc push --run-cache </dev/null; then
    echo "cell done: ${stages[*]}"
  else
    echo "cell FAILED: ${stages[*]}" >&2
    failed=1
  fi
done <<<"$cells"
exit "$failed"
