"""CEL: the expressions of guards, their syntax trees, and the cost of judging them."""
