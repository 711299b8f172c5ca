"""OpenAI's chat completions: their bodies, their errors, and their routes."""
