"""What is told of a search on its way, and who logs it."""
