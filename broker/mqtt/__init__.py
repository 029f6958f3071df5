"""MQTT connections: the contract, paho behind it, and what is retained."""
