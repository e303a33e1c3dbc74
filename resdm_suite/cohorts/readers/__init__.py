"""Readers of sources: BIDS, ADNI, OpenNeuro, tables, the released layout."""
