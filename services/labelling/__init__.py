"""A few labels of the target: which records are most worth one, and a page on which people give them."""
