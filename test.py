"""Tests a network on images and writes them with their metrics to results/.

    python test.py -opt options/demo/test_student.yml
"""
from os import path as osp

from kd_cli.test import main

if __name__ == '__main__':
    main(root_path=osp.dirname(osp.abspath(__file__)))
