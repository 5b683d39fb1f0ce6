# SPDX-License-Identifier: Apache-2.0
"""MXFP4, NVFP4 and INT4 on the weights and activations of a real model."""
