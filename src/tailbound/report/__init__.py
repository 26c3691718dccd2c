"""How results look: tables in the terminal."""
