#!/usr/bin/env bash
# The spine, shown on real images: is a detector that was pretrained without labels ahead of a random one?
# Foregrounds objects_open, backgrounds and transfer cards; one third of the labels; three seeds.
#
#   for s in 0 1 2; do experiments/small/spine.sh $s; done      then: python experiments/small/spine_table.py
#
# One AVX2 core: 20 minutes of pretraining and 2 x 7 minutes of transfer a seed. Reached: see experiments/results/spine.md. A finished part is not run again, a part that
# was stopped goes on. Parts may be named: `spine.sh 0 none`. Needs CODO_DATA (default ../shared/data).
set -euo pipefail
cd "$(dirname "$0")/../.."
seed=$1; shift
data=${CODO_DATA:-../shared/data}
parts=("$@"); [ $# -gt 0 ] || parts=(pretrain codo none)

run() { # run FOLDER COMMAND...
  local out=$1; shift
  if [ -f "$out/summary.json" ]; then echo "$out: done"
  elif [ -f "$out/checkpoint.pt" ]; then python cli.py "$1" --resume "$out"
  else rm -rf "$out"; python cli.py "$@" --out "$out"
  fi
}

transfer() { # transfer NAME WEIGHTS
  run "runs/spine/$1-$seed" transfer --detector faster_rcnn --weights "$2" --data "$data/cards" --preset small \
    --fraction 0.34 --epochs 8 --set "detection.min_size=[168]" --set detection.max_size=224 \
    --set optim.eval_every=2 --set optim.warmup_iterations=100 --set run.threads=1 --set run.workers=0 --seed "$seed"
}

for part in "${parts[@]}"; do
  case $part in
    pretrain) run "runs/spine/pretrain-$seed" pretrain --preset small --foregrounds "$data/objects_open/images" \
      --backgrounds "$data/cards" --views 1 --epochs 20 --set optim.lr=0.06 --set data.limit=800 --set run.threads=1 --seed "$seed" ;;
    codo) transfer codo "runs/spine/pretrain-$seed" ;;
    none) transfer none none ;;
    *) echo "spine.sh: no part $part; pretrain, codo, none" >&2; exit 2 ;;
  esac
done
