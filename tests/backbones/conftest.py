"""metatomic's TorchScript does not load once torch_geometric has been imported.

MatGL and SevenNet import that: metatomic goes first, whatever the order of the tests.
"""

import contextlib


with contextlib.suppress(ImportError):
    import metatomic.torch  # noqa: F401
