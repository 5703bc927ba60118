"""`ldm compare`: families of generative models under one protocol, as cells of family and seed."""
