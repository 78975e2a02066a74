"""What can be captured: each file knows one kind of source."""
