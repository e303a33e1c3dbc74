"""ResDM: a reproducible-paper suite for multi-modal PET synthesis from MRI (Ou et al., IJCAI 2024)."""

__version__ = "0.1.0"
