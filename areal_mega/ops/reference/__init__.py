"""Every operation in plain torch, close to its definition. Slow; any device and floating dtype: the other backends'
oracle, and what runs where they do not."""
