"""Parts of `distilled_head.py`: structures, signals, costs, pictures."""

from __future__ import annotations

import sys

from common import BUNDLED


# molecules, GFN2-xTB labels and batched heating are those of the bundled potential
sys.path.insert(0, str(BUNDLED))
