"""The Flower app: two thin ends; everything else is the installed library."""
