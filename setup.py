# A shim for Dataflow's --setup_file; all else is in pyproject.toml.
from setuptools import setup

setup(license="Apache-2.0")
