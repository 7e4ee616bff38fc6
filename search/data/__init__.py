"""Where pictures come from: sources, files, stacks of small pictures, random batches."""
