#!/usr/bin/env bash
# Trains the arms of the comparison, one after the other; run from the root of the project: docs/results/mcadkd/arms.sh
set -eu
here=docs/results/mcadkd
script=$here/train.py
student=$here/mcadkd_edsr16_x2.yml
. docs/results/train.sh

no_gan=('train:gan_opt=~' 'train:optim_d=~' 'network_d=~')
no_contrast='train:contrastive_opt=~'
no_response='train:response_kd_opt=~'

for seed in 0 1 2; do
  arm alone $seed 'teacher=~' $no_response $no_contrast "${no_gan[@]}"
  arm response $seed $no_contrast "${no_gan[@]}"
  arm mcadkd $seed
done
# the parts, one seed
arm without_contrastive 0 $no_contrast
arm without_adversarial 0 "${no_gan[@]}"
arm without_response 0 $no_response
arm without_image_level 0 train:contrastive_opt:level=patch
arm without_patch_level 0 train:contrastive_opt:level=image
# what the literature proposes where content alone solves the contrastive task
arm degraded_negatives 0 train:contrastive_opt:negatives=in_batch+degraded train:contrastive_opt:mining=hard
