"""What the board and its owner allow: conditions, budgets, duty cycles."""
