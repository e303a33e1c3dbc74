"""The judgement: image quality, regional SUVR, statistics, and what evaluators of real PET see in synthetic PET."""
