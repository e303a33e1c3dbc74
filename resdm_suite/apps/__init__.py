"""The command line and its stages."""
