# SPDX-License-Identifier: Apache-2.0
"""setuptools' build backend, which asks for CUTLASS's package only where its headers are needed.

nvidia-cutlass brings 60 MB of dependencies that a build never imports, so an isolated build without
nvcc, or with headers at hand, does without.
"""

from __future__ import annotations

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

from toolchain import CUTLASS_PACKAGE, has_cutlass, has_nvcc, site_packages


def _requirements() -> list[str]:
    return [CUTLASS_PACKAGE] if has_nvcc(site_packages()) and not has_cutlass() else []


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _requirements()
