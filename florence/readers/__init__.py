"""Reading pictures: from what a caller gives to pixels at the model's input size, beside the engine."""
