"""The scenario language: schema, overrides, and the way from text to a resolved `spec.Scenario`."""
