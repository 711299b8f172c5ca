"""Low-rank adapters beside the linear layers of one model; each row of a batch may have its own."""
