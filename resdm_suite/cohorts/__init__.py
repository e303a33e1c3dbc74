"""The data: raw scans → manifest → registration → volumes → dataset."""
