# SPDX-License-Identifier: Apache-2.0
"""How fast is each matrix product? `python -m qutlass bench`, the same arguments."""

import sys

from qutlass.bench.gemm import main

if __name__ == "__main__":
    sys.exit(main())
