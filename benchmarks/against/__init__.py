"""Requests that cost a service more than they should; `benchmarks/attacks.py` sends and measures them."""
