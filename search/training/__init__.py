"""How networks are trained: the loop, where and how it computes, by how many processes, its checkpoints."""
