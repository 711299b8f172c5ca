"""A server of the Model Context Protocol: tools about pictures for agents, by the official SDK. Knows nothing
about models.
"""
