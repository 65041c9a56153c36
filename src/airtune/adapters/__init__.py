"""LoRA adapters: names and ranks, a submodel's slice, few bits, on and off a model."""
