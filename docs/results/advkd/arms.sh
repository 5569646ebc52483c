#!/usr/bin/env bash
# Trains the teacher and the arms of the comparison, one after the other; run from the root of the project:
# docs/results/advkd/arms.sh
set -eu
here=docs/results/advkd
student=$here/student_x4.yml
prefix=phases_
. docs/results/train.sh

no_gan=('train:gan_opt=~' 'network_d=~' 'train:optim_d=~')
response=('train:phase_kd_opt=~' network_g:noise=zero 'train:response_kd_opt={type: L1Loss, loss_weight: 1.0}')
alone=(model_type=DistillationModel 'teacher=~' network_g:noise=zero
  'train:pixel_opt={type: L1Loss, loss_weight: 1.0}')

train $here/diffusion_teacher_x4.yml diffusion_small_x4
for seed in 0 1 2; do
  arm advkd $seed
  arm no_gan $seed "${no_gan[@]}"
  arm response $seed "${no_gan[@]}" "${response[@]}"
  arm alone $seed "${no_gan[@]}" "${alone[@]}"
done
