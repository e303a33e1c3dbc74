"""Building blocks of the network: wavelet stem, additional paths, text tower, activation checkpointing."""
