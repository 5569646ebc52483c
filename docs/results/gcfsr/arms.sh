#!/usr/bin/env bash
# Trains the teacher and the arms of the comparison, one after the other; run from the root of the project, after
# faces.sh: docs/results/gcfsr/arms.sh
set -eu
here=docs/results/gcfsr
student=$here/sdakd_gcfsr_64_quarter.yml
prefix=face_
. docs/results/train.sh

alone=('teacher=~' 'train:feature_kd_opt=~' 'train:feature_kd_d_opt=~' 'train:stages=[
  {name: supervised, iters: 200, losses: [pixel, perceptual]},
  {name: adversarial, iters: 250, losses: [pixel, perceptual, gan], optimizer: fresh}]')
features_of_g=('teacher:network_d=~' 'teacher:path:pretrain_network_d=~' 'train:feature_kd_d_opt=~')

train $here/gcfsr_64.yml gcfsr_64
for seed in 0 1 2; do
  arm sdakd $seed
  arm alone $seed "${alone[@]}"
  arm generator_only $seed "${features_of_g[@]}"
done
