"""Steps and encodes of a few fixed shapes, captured before the first request and replayed as graphs."""
