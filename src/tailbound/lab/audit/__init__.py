"""`tailbound audit`: which heads of a model are sparse, what budget is safe, what it saves, what theory predicts."""
