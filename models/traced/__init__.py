"""What a network of somebody else consists of: its graph, its channels, its units, and what of it can go."""
