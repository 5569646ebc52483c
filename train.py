"""Trains a student.

    python train.py -opt options/demo/student_distilled.yml                                   # CPU or one GPU
    torchrun --nproc_per_node=4 train.py -opt options/... --launcher pytorch                  # four GPUs (or CPUs)
    python train.py -opt options/... --auto_resume                                            # go on where it stopped
    python train.py -opt options/... --force_yml train:optim_g:lr=1e-4 name=another_rate      # change single options
"""
from os import path as osp

from kd_cli.train import main

if __name__ == '__main__':
    main(root_path=osp.dirname(osp.abspath(__file__)))
