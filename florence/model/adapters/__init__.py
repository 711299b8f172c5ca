"""Adapters beside the linear layers of one model, for each row of a batch its own."""
