"""Ten planted faults, each caught by a named test: ``python tests/mutations.py``.

Each fault is planted in a temporary copy of the project. Its test must pass without the fault and fail with it. A line
that is not found is an error, so the table stays valid.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FAULTS = [  # file, right code, faulty code, test
    ("resdm/scheduler.py", "x0 + eta * (y0 - x0)", "x0 + eta * (x0 - y0)",
     "test_scheduler.py::test_forward_mean_and_variance_are_equation_1"),
    ("resdm/scheduler.py", "self.kappa**2 * ratio * (eta - eta_next)", "self.kappa**2 * (eta - eta_next)",
     "test_scheduler.py::test_posterior_is_the_product_of_gaussians"),
    ("resdm/losses.py", "return rec + lambda_high * high,", "return rec + high,",
     "test_losses.py::test_total_is_equation_7"),
    ("resdm/losses.py", "torch.where(mask, values, 0.0)", "values",
     "test_losses.py::test_a_missing_pet_has_no_effect_whatever_its_values"),
    ("resdm/prior.py", '{"F": "female", "M": "male"}', '{"F": "male", "M": "female"}',
     "test_prior.py::test_prompts_are_the_released_sentences"),
    ("resdm/loop.py", "torch._foreach_lerp_(average, weights, 1 - decay)",
     "torch._foreach_lerp_(average, weights, decay)", "test_training.py::test_average_is_the_geometric_sum"),
    ("resdm/loop.py", 'self.generator.set_state(state["losses"])', "pass",
     "test_training.py::test_resume_is_exact_to_the_byte"),
    ("resdm_suite/evaluation/image_quality.py", "10 * np.log10(1 / mse)", "20 * np.log10(1 / mse)",
     "test_image_quality.py::test_equal_to_scikit_image"),
    ("resdm_suite/evaluation/statistics.py", "np.arange(len(order), 0, -1)", "len(order)",
     "test_statistics.py::test_holm"),
    ("resdm_suite/evaluation/suvr.py", "low + (high - low)", "low + high", "test_suvr.py"),
]  # fmt: skip


def passes(folder: Path, test: str) -> bool:
    """Whether a test of the copied project passes."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode == 0


def main() -> int:
    """Print one line per fault; the number of faults that no test caught is the exit code."""
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        ignored = shutil.ignore_patterns(".git", ".venv", "work", "figures", "__pycache__", ".snakemake")
        shutil.copytree(ROOT, folder, ignore=ignored)
        for file, right, faulty, test in FAULTS:
            source = (folder / file).read_text(encoding="utf-8")
            if source.count(right) != 1:
                raise SystemExit(f"{file}: expected once: {right}")
            before = passes(folder, test)
            (folder / file).write_text(source.replace(right, faulty), encoding="utf-8")
            caught = before and not passes(folder, test)
            (folder / file).write_text(source, encoding="utf-8")
            print(f"{'caught' if caught else 'MISSED'}: {file}: {faulty}: {test}", flush=True)
            missed += not caught
    return missed


if __name__ == "__main__":
    sys.exit(main())
