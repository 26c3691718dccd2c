"""`tailbound verify`: calls drawn at random, steered and captured, each certificate recomputed by an oracle."""
