"""Operations: metrics, logs, alerts, and views for other systems."""
