"""A weight becomes conductances, a product becomes reads."""
