"""Import metatomic first: see tests/backbones/conftest.py."""

import contextlib


with contextlib.suppress(ImportError):
    import metatomic.torch  # noqa: F401
