"""The devices of a machine: what they can do, their memory, the programs compiled for them."""
