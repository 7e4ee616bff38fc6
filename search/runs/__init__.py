"""Runs: what determines a search, and what its folder holds."""
