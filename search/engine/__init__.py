"""The engine: a search from its start through growth to the front, in its run folder."""
