"""Networks for machines without this package."""
