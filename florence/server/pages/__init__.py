"""The service's own pages: `/`, the playground at `/ui`, and the API page at `/docs`."""
