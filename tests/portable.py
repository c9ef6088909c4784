"""Run the numerical tests with kernels of other processors: `make test-portable`.

Kernels are chosen by processor, and each has its own order of summation; environment
variables choose other ones. All test files except those of ``LEFT_OUT`` count as
numerical, so that a new one is run here without a change. Other files or folders may be
named on the command line.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path


FOLDER = Path(__file__).parent
# Text, files, processes and pictures: no two routes to one number.
LEFT_OUT = [
    "cli",
    "models/test_named.py",
    "runfile/test_file.py",
    "test_defaults.py",
    "test_demo.py",
    "test_examples.py",
    "test_gpu.py",
    "test_import.py",
    "test_info.py",
    "test_lock.py",
    "test_plotting.py",
    "test_require_run.py",
    "test_rough_handling.py",
    "watching/test_eventlog.py",
    "watching/test_monitor.py",
]
ONE, TWO = {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}
OLD_BLAS = {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4"}
SETTINGS = {
    "torch without vectors": ONE | {"ATEN_CPU_CAPABILITY": "default"},
    "torch with AVX2": ONE | {"ATEN_CPU_CAPABILITY": "avx2"},
    "as it is": ONE,
    "two threads": TWO,
    "MKL of any processor": ONE | {"MKL_CBWR": "COMPATIBLE"},
    "NumPy and SciPy of 2008": ONE | OLD_BLAS,
    "sums in another order": ONE | {"PYTEST_PLUGINS": "rounding"},
}
CHOSEN = {name for setting in SETTINGS.values() for name in setting}


def run(setting: dict[str, str], paths: list[str]) -> tuple[list[str], str]:
    """Return the tests that failed, and the closing line of pytest."""
    plain = {k: v for k, v in os.environ.items() if k not in CHOSEN}
    plain["PYTHONPATH"] = os.pathsep.join(
        [str(FOLDER), *filter(None, [plain.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-q"]
    command += ["-rfE", "-p", "no:cacheprovider", *paths]
    done = subprocess.run(
        command, env=plain | setting, capture_output=True, text=True, check=False
    )
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode and not failed:
        failed = [f"pytest ended with {done.returncode}"]
    if failed:
        print(done.stdout, done.stderr, sep="\n")
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    return failed, lines[-1] if lines else ""


def main(paths: list[str]) -> int:
    ignored = [f"--ignore={FOLDER / name}" for name in LEFT_OUT]
    paths = paths or [str(FOLDER), *ignored]
    failures: dict[str, list[str]] = {}
    for name, setting in SETTINGS.items():
        started = time.monotonic()
        failed, closing = run(setting, paths)
        for test in failed:
            failures.setdefault(test, []).append(name)
        minutes = (time.monotonic() - started) / 60
        print(f"{name:<24} {minutes:5.1f} min  {closing}", flush=True)
    for test, where in sorted(failures.items()):
        print(f"FAILED {test}: {', '.join(where)}")
    print(f"{len(SETTINGS)} settings, {len(failures)} tests failed in one or more")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
