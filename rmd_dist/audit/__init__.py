"""Which labels are wrong: an audit of a data set, and what a person decides about it."""
