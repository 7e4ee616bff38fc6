"""Sweeps: many searches whose options are drawn by Optuna; any number of processes may work on one."""
