"""The compact network, and the evidence that it computes the same function."""
