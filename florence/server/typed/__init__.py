"""One typed endpoint for each task, and their description."""
