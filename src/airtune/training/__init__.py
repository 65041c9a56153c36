"""Assignment to update: what a client does, on its data, with the base model."""
