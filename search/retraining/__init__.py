"""Retraining what a search has found, alone or beside others that are trained alike."""
