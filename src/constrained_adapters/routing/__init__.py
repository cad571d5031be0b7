"""Which domain is this prompt? From the base's hidden states, the user's keywords, or an embedding model."""

from constrained_adapters.routing.route import BASE, Route
from constrained_adapters.routing.router import Router, find_router

__all__ = ["BASE", "Route", "Router", "find_router"]
