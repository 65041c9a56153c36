"""airtune."""
