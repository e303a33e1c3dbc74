"""The judgement: image quality, regional SUVR, statistics."""
