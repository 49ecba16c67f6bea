"""What a person reads of a run and of a sweep: tables, pictures, pages."""
