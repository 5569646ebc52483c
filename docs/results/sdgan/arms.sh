#!/usr/bin/env bash
# Trains the arms of the comparison, one after the other, from the starts that docs/results/sdakd/arms.sh makes; run from
# the root of the project: docs/results/sdgan/arms.sh
set -eu
here=docs/results/sdgan
. docs/results/train.sh

for seed in 0 1 2; do
  for weight in 0 0.1 0.316 1; do  # none; the GAN weight w; sqrt(w); 1
    train $here/sdgan_compact16_x4.yml "sdgan_w${weight}_s$seed" "manual_seed=$seed" \
      "train:self_distill_opt:loss_weight=$weight" \
      "path:pretrain_network_g=experiments/supervised_s$seed/models/net_g_latest.pth"
  done
done
