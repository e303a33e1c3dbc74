"""Tables, figures and their provenance."""
