"""Reading logs for a person: sources, the merge of several, and what a terminal shows."""
