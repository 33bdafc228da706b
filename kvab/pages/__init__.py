"""What a reader sees: figures, tables and sentences made from runs and statistics."""
