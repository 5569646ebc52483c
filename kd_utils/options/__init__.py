"""Reading options: safe YAML, BasicSR's command line, foreign names, and the files that the options name.

`parse_options` reads, `check_options` (kd_utils/schema) checks the keys, `check_files` the files. None of them builds,
seeds or initializes anything.
"""
from kd_utils.options.aliases import apply_aliases
from kd_utils.options.command_line import parse_options
from kd_utils.options.files import check_face, check_files
from kd_utils.options.images import IMAGES, upright_size
from kd_utils.options.text import find_option_file, load_yaml, parse_yaml
from kd_utils.schema import OptionError, Options, check_options, crop_size, nearest, teacher_caches

__all__ = ['IMAGES', 'OptionError', 'Options', 'apply_aliases', 'check_face', 'check_files', 'check_options',
           'crop_size', 'find_option_file', 'load_yaml', 'nearest', 'parse_options', 'parse_yaml', 'teacher_caches',
           'upright_size']
