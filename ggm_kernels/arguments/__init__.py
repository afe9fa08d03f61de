"""Per op: checked arguments, in the form in which backends take them."""
