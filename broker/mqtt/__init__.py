"""MQTT connections: the contract, its implementation on paho, and retained messages."""
