"""One typed endpoint for each task, and what describes them."""
