"""What people see of a long piece of work: its progress, and numbers in words."""
