"""A shim for old tools: everything is in pyproject.toml."""
from setuptools import setup

setup()
