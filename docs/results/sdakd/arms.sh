#!/usr/bin/env bash
# Makes the teacher's discriminator and trains the arms of the comparison, one after the other; run from the root of the
# project: docs/results/sdakd/arms.sh
set -eu
here=docs/results/sdakd
student=$here/sdakd_compact16_x4.yml
. docs/results/train.sh

alone=('teacher=~' 'train:feature_kd_opt=~' 'train:feature_kd_d_opt=~' 'train:stages=[
  {name: supervised, iters: 500, losses: [pixel, perceptual]},
  {name: adversarial, iters: 750, losses: [pixel, perceptual, gan], optimizer: fresh}]')
features_of_g=('teacher:network_d=~' 'teacher:path:pretrain_network_d=~' 'train:feature_kd_d_opt=~')

python $here/start.py
train $here/teacher_discriminator_compact64_x4.yml teacher_discriminator_compact64_x4
for seed in 0 1 2; do
  train $here/supervised_compact16_x4.yml "supervised_s$seed" "manual_seed=$seed" \
    "path:pretrain_network_g=experiments/start/$seed.pth"
  start=path:pretrain_network_g=experiments/supervised_s$seed/models/net_g_latest.pth
  arm sdakd $seed $start
  arm student_d $seed $start "${alone[@]}"
  arm generator_only $seed $start "${features_of_g[@]}"
  arm full_d $seed $start "${alone[@]}" network_d:num_feat=64
done
