"""The networks themselves, in plain torch: every tensor has the name that diffusers and transformers give it."""
