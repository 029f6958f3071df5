"""The live page of a federation: a state model, an observer of the broker, and a web server for one page."""
