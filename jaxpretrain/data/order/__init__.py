"""The global order of examples: a pure function of the seed and the sample's number."""
