"""What a person sees: the numbers worth comparing, as tables for a terminal and as a page."""
