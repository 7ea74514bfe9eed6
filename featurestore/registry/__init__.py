"""What is declared and what is applied: definitions, their documents, plans, applies, and the state of jobs."""
