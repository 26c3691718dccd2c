"""One question, several implementations: `api` asks, `check` refuses, `reference` specifies, the others obey."""
