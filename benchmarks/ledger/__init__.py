"""What the GPU path dispatches, counted on fake tensors, and what it would take: reckoned, not measured."""
