# ruff: noqa: I001, E501
"""Bicubic interpolation against the teacher's images: the level at which a student has learnt nothing from it.

    python docs/results/real_teacher/bicubic.py datasets/prepared/GB82/LRbicX4 results/teacher_realesr_general_x4v3/visualization/GB82
"""
import sys
from pathlib import Path

import kd_models  # noqa: F401  first: it makes basicsr importable
import cv2
import numpy as np
from basicsr.metrics import calculate_psnr
from basicsr.utils.matlab_functions import imresize

lr_folder, teacher_folder = map(Path, sys.argv[1:])
values = []
for path in sorted(lr_folder.glob('*.png')):
    bicubic = np.clip(imresize(cv2.imread(str(path)) / 255, 4) * 255, 0, 255).round()
    teacher = cv2.imread(str(teacher_folder / f'{path.stem}_teacher.png'))
    values.append(calculate_psnr(bicubic, teacher, crop_border=4, test_y_channel=True))
print(f'PSNR-Y of bicubic interpolation against the teacher, {len(values)} images: {np.mean(values):.2f} dB')
