"""The configuration: schema, composition, checks."""
