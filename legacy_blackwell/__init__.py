# SPDX-License-Identifier: Apache-2.0
"""Reference material about the MXFP/NVFP library for Blackwell that this project descends from."""
