"""Devices: the mesh, layouts of arrays on it, checkpoints of sharded state."""
