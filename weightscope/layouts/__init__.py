"""Model-family knowledge as tables: roles, packed names."""
