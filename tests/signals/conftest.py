from __future__ import annotations

import pytest
import torch


@pytest.fixture
def transfers(monkeypatch):
    """Count device-to-host copies: every way of asking for one is a count."""
    count = []
    for name in ("cpu", "item", "tolist", "numpy", "__float__", "__bool__"):
        plain = getattr(torch.Tensor, name)

        def counted(self, *args, _plain=plain, _name=name, **kwargs):
            count.append(_name)
            return _plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return count
