# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of records, without a GPU: `python bench/report.py out.jsonl [--plots FOLDER]`.

The same as `python -m qutlass bench --from out.jsonl`.
"""

import sys

from qutlass.bench.gemm import main

if __name__ == "__main__":
    sys.exit(main(["--from", *sys.argv[1:]]))
