"""Many devices as one mesh, and many processes as one run."""
