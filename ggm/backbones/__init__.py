"""Networks whose prediction at a position does not see the token there."""
