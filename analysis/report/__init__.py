"""A run in one page: what each section shows as plain data, and the template that shows it."""
