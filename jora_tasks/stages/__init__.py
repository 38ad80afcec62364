"""The stages: each a plain function from the spec and input artifacts to one artifact."""
