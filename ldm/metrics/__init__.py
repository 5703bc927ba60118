"""How good pictures are: what is seen in them (features), apart from what is counted (statistics)."""
