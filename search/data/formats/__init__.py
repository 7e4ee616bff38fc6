"""What picture files hold, and how it is read and written without losing anything in silence."""
