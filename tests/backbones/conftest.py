"""metatomic's TorchScript does not load once torch_geometric has been imported.

MatGL and SevenNet import it, so metatomic is imported first, for any order of tests.
"""

import contextlib


with contextlib.suppress(ImportError):
    import metatomic.torch  # noqa: F401
