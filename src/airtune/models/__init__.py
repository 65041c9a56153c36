"""Models and devices: families, counted work, structures, loading; profiles and assets."""
