"""Everything a person or another program touches."""
