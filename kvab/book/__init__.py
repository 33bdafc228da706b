"""From runs to the book: pages and the published copy."""
