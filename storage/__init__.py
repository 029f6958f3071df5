"""What must survive a power cut: files written whole, locked SQLite databases, and the failpoints that test them."""
