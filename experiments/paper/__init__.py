"""The papers' tables and figures, by one command each, beside what is printed."""
