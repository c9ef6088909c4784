"""P of atoms from the error of their structure and their shares in it."""

import math

import numpy as np
import pytest
import torch

from uqcalc.errors import ProbeError
from uqcalc.fitting.atoms import learn_atom_shares
from uqcalc.probe.atomshares import AtomShares
from uqcalc.probe.calibration import Calibration


LEVELS = np.array([0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0])
SLOPE = 2.5  # of the log-odds against the log error
CALIBRATION = Calibration(
    boundaries=tuple(LEVELS), shifts=tuple(SLOPE * np.log(LEVELS / 0.2))
)
KNOTS = tuple((x, 3.0 * x) for x in (-2.0, -1.0, 0.0, 1.0))
SHARES = AtomShares(1.0, 0.5, KNOTS)


def odds(structures, scores, forces, sizes, boundary=0.2):
    scores, forces = (torch.tensor(x, dtype=torch.float64) for x in (scores, forces))
    given = SHARES.shares(scores, forces, sizes)
    levels = torch.tensor(structures, dtype=torch.float64)
    return SHARES.logits(CALIBRATION, levels, given, sizes, boundary)


def test_errors_are_the_inverse_of_the_probability():
    """Inside and beyond the errors of the labels, for an adapted probe too."""
    system = ((-3.0, -4.0), (3.0, 1.0))
    for one in (
        CALIBRATION,
        Calibration.from_dict(CALIBRATION.to_dict() | {"system": system}),
    ):
        own = one.adapted(torch.tensor([0.7, -1.2], dtype=torch.float64))
        wanted = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
        logs = one.log_errors(own, wanted)
        for level, row in zip(own, logs, strict=True):
            back = one.moved(level, row.exp())
            torch.testing.assert_close(back, wanted)
    far = CALIBRATION.log_errors(torch.zeros(1), torch.tensor([30.0]))
    assert float(far) == pytest.approx(math.log(0.2) + 30.0 / SLOPE, rel=1e-5)


def test_repeating_a_cell_changes_no_probability():
    scores, forces = [0.3, -0.1, 0.5], [0.0, -1.0, 1.0]
    one = odds([0.4], scores, forces, [3])
    many = odds([0.4], scores * 8, forces * 8, [24])
    torch.testing.assert_close(many, one.repeat(8))
    both = odds([0.4, 0.4], scores * 9, forces * 9, [3, 24])
    torch.testing.assert_close(both, one.repeat(9))


def test_atoms_follow_their_structure():
    """With equal atoms, a structure that is better has better atoms, to both ends."""
    found = [float(odds([x], [0.0], [0.0], [1])) for x in (-9, -3, 0, 3, 9)]
    assert found == sorted(found)
    assert found[0] < -4
    assert found[-1] > 4
    low = odds([1.0], [0.0, 0.0], [0.0, 0.0], [2], boundary=0.1)
    assert torch.all(low < odds([1.0], [0.0, 0.0], [0.0, 0.0], [2]))


def test_mean_square_of_the_shares_is_that_of_the_structure():
    shares = SHARES.shares(torch.randn(7), torch.randn(7), [3, 4])
    for part in shares.split([3, 4]):
        assert float((2 * part).exp().mean()) == pytest.approx(1.0, rel=1e-5)


def test_nan_stays_within_its_structure():
    found = odds([0.0, math.nan], [0.0, 0.1, 0.2, 0.3], [0.0] * 4, [2, 2])
    assert found[:2].isfinite().all()
    assert found[2:].isnan().all()


def made_up(structures, seed, far=0.0):
    """Atoms of structures with calibrated log-odds; two halves differ by ``far``."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(6, 14, structures)
    levels = rng.normal(0.0, 2.0, structures)
    rms = 0.2 * np.exp((rng.logistic(size=structures) - levels) / SLOPE)
    n = int(sizes.sum())
    bad = np.concatenate([np.arange(k) < k // 2 for k in sizes])
    forces = rng.normal(-1, 1, n)
    scores = rng.normal(0, 0.3, n) - bad * far / 2
    errors = np.exp(0.3 * forces - 2.0 * scores) * np.sqrt(rng.chisquare(3, n))
    for part, level in zip(np.split(errors, np.cumsum(sizes)[:-1]), rms, strict=True):
        part *= level / np.sqrt(np.mean(part**2))
    return scores, forces, errors, rms, sizes.tolist(), levels, bad


def chances(learnt, scores, forces, sizes, levels):
    given = learnt.shares(torch.from_numpy(scores), torch.from_numpy(forces), sizes)
    found = learnt.logits(CALIBRATION, torch.from_numpy(levels), given, sizes, 0.2)
    return found.sigmoid().numpy()


def test_fit_finds_the_weights_and_the_probabilities_hold():
    learnt = learn_atom_shares(*made_up(600, seed=0)[:5])
    assert learnt.score == pytest.approx(2.0, rel=0.1)
    assert learnt.force == pytest.approx(0.3, rel=0.15)
    scores, forces, errors, _, sizes, levels, _ = made_up(600, seed=1)
    found = chances(learnt, scores, forces, sizes, levels)
    for low in (0.1, 0.4, 0.7):
        some = (found > low) & (found < low + 0.2)
        right = np.mean(errors[some] <= 0.2)
        assert right == pytest.approx(found[some].mean(), abs=0.05)


def test_distant_parts_get_the_errors_of_their_scores():
    """Two molecules in one cell: the errors are those of the one with low scores."""
    learnt = learn_atom_shares(*made_up(300, seed=0)[:5])
    scores, forces, errors, _, sizes, levels, bad = made_up(600, seed=3, far=3.0)
    found = chances(learnt, scores, forces, sizes, levels)
    for part in (bad, ~bad):
        right = np.mean(errors[part] <= 0.2)
        assert found[part].mean() == pytest.approx(right, abs=0.05)
    assert found[~bad].mean() > found[bad].mean() + 0.3


def test_few_labels_give_no_shares():
    scores, forces, errors, rms, sizes, *_ = made_up(600, seed=0)
    errors[150:] = math.nan
    assert learn_atom_shares(scores, forces, errors, rms, sizes) is None


def test_record_is_json_and_checked():
    assert AtomShares.from_dict(SHARES.to_dict()) == SHARES
    for wrong in (
        {"score": -1.0},
        {"knots": [[0.0, 0.0]]},
        {"knots": [[1, 0], [0, 1]]},
    ):
        with pytest.raises(ProbeError, match="atom shares of a probe"):
            AtomShares.from_dict(SHARES.to_dict() | wrong)
