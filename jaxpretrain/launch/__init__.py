"""What SLURM, Kubernetes, TPU VMs and one machine need to start training, and to start it again."""
