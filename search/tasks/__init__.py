"""What is to be learnt: restoring pictures, telling classes apart; and how results are scored."""
