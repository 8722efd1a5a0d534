"""Model families. Each gives the same contract (`contract.Model`); flax is imported only here."""
