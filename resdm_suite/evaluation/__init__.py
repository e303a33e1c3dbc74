"""Evaluation: image quality, regional SUVR, statistics, and classifiers of real PET applied to synthetic PET."""
