"""What the aggregator says: models, announcements, receipts."""
