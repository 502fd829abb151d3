"""From a request to a job: what is submitted, and what becomes of it."""
