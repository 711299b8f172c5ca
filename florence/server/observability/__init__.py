"""What an operator sees: log lines, request ids, metrics and traces."""
