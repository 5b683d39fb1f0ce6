# SPDX-License-Identifier: Apache-2.0
"""How fast are quantization and packing? `python -m qutlass bench quant`, the same arguments."""

import sys

from qutlass.bench.quant import main

if __name__ == "__main__":
    sys.exit(main())
