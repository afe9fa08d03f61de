"""Per op: schema, argument checks, fake, autograd, and the choice of a backend."""
