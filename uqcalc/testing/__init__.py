"""Checks that backbones and signals keep their contracts, for users of uqcalc, too.

A new backbone is right when `check_backbone` returns, a new signal when
`check_signal` does. Neither needs a test framework. For a calculator class
``MyCalculator`` the call is ``check_backbone(MyCalculator, contract_frames())``.
"""

from uqcalc.testing.backbone import check_backbone, contract_frames
from uqcalc.testing.clauses import ContractError
from uqcalc.testing.signal import check_signal


__all__ = ["ContractError", "check_backbone", "check_signal", "contract_frames"]
