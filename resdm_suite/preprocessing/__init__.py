"""From native scans to volumes on the common grid."""
