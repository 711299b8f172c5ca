"""The operations that the GPU path dispatches, counted on fake tensors, and their estimated time; nothing is
measured."""
