"""T5 as a Flax Linen module, and the interface through which everything else sees a model."""
