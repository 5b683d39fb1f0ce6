# SPDX-License-Identifier: Apache-2.0
"""What does a call cost the host? `python -m qutlass bench host`, the same arguments."""

import sys

from qutlass.bench.host import main

if __name__ == "__main__":
    sys.exit(main())
