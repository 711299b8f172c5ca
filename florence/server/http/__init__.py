"""HTTP of a worker: its connections and bodies, and the middleware around all routes."""
