"""Linear layers and their back ends."""
