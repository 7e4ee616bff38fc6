"""Networks that come with the package, ready to use: each in a folder of `networks/` with its card."""
