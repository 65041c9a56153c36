"""The round loop on a virtual clock."""
