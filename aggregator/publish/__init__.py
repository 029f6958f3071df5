"""Publishing: models, announcements, receipts."""
