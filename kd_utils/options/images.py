"""The sizes of images, from their headers."""
from __future__ import annotations

from os import path as osp

from PIL import ExifTags, Image

from kd_utils.schema import OptionError

IMAGES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')


def size_text(size: tuple[int, int]) -> str:
    """Width and height for a message."""
    return f'{size[0]}x{size[1]}'


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image as OpenCV, with which BasicSR reads, turns it: as its camera was held."""
    on_its_side = image.format in ('JPEG', 'MPO') and image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    return (image.height, image.width) if on_its_side else image.size


def image_size(key: str, path: str) -> tuple[int, int]:
    """Width and height from the header of the file."""
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        state = 'is empty' if osp.isfile(path) and not osp.getsize(path) else 'cannot be read as an image'
        raise OptionError(f'`{key}`: `{path}` {state}. Write it anew, or take it out of the set.') from None
