#!/usr/bin/env bash
# Divides the faces into 40 for training and 16 for tests, at 64x64, with LR faces of each scale; run from the root of
# the project: docs/results/gcfsr/faces.sh
set -eu
out=datasets/prepared/faces
mkdir -p $out/source/train $out/source/test
i=0
for face in "${KD_DATA:-datasets}"/faces/CelebA-HQ_56/*.jpg; do  # two of every seven are for tests
  case $((i++ % 7)) in 2 | 5) set=test ;; *) set=train ;; esac
  cp "$face" $out/source/$set
done
for set in train test; do
  kd-prepare lr $out/source/$set $out/$set/64 --scale 16
  for scale in 2 4 8; do
    kd-prepare lr $out/$set/64 $out/$set/64_LRx$scale --scale $scale
  done
done
