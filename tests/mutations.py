"""Planted faults, each caught by a named test: ``python tests/mutations.py``.

Each fault is planted in a temporary copy of the project. All tests must pass without a fault, and its test must fail
with it. ``test_project.py`` holds the table against the code.
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
     "torch._foreach_lerp_(average, weights, decay)",
     "test_training.py::test_average_starts_after_the_warmup_and_is_what_is_saved"),
    ("resdm/loop.py", 'self.generator.set_state(state["losses"])', "pass",
     "test_training.py::test_resume_is_exact_to_the_byte[Plain-3]"),
    ("resdm_suite/evaluation/image_quality.py", "10 * np.log10(1 / mse)", "20 * np.log10(1 / mse)",
     "test_image_quality.py::test_equal_to_scikit_image"),
    ("resdm_suite/evaluation/statistics.py", "np.arange(len(order), 0, -1)", "len(order)",
     "test_statistics.py::test_holm"),
    ("resdm_suite/evaluation/suvr.py", "low + (high - low)", "low + high", "test_suvr.py"),
    ("resdm/weights.py", "if digest != _digest(text, values)", "if False",
     "test_checkpoint.py::test_a_corrupted_model_file_is_named"),
    ("resdm/settings.py", "trust_code or kind in METHODS or module in sys.modules", "True",
     "test_hub.py::test_a_models_code_is_run_only_where_it_is_trusted"),
    ("resdm_suite/cohorts/readers/bids.py", 're.search("_rec-nac", name, re.IGNORECASE)', "False",
     "test_bids.py::test_other_spellings_of_trc_and_scans_that_are_never_taken"),
    ("resdm_suite/cohorts/splits.py", "for person in members[name]}))",
     "for person in members[name]}).sample(frac=1, random_state=0).to_numpy())",
     "test_manifest.py::test_a_split_is_by_person_in_the_shares_of_the_profile"),
]  # fmt: skip


def passes(folder: Path, *tests: str) -> bool:
    """Whether tests of the copied project pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [f"tests/{test}" for test in tests]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode == 0


def main() -> int:
    """Print one line per fault; the number of faults that no test caught is the exit code."""
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        ignored = shutil.ignore_patterns(".git", ".venv", "work", "figures", "__pycache__", ".snakemake")
        shutil.copytree(ROOT, folder, ignore=ignored)
        if not passes(folder, *(test for *_, test in FAULTS)):
            raise SystemExit("the tests fail without a fault")
        for file, right, faulty, test in FAULTS:
            source = (folder / file).read_text(encoding="utf-8")
            (folder / file).write_text(source.replace(right, faulty), encoding="utf-8")
            caught = not passes(folder, test)
            (folder / file).write_text(source, encoding="utf-8")
            print(f"{'caught' if caught else 'MISSED'}: {file}: {faulty}: {test}", flush=True)
            missed += not caught
    return missed


if __name__ == "__main__":
    sys.exit(main())
