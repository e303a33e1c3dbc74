"""What the notebooks share: cohorts, preprocessing, evaluation, reporting, applications."""
