"""The registry at run time: orders and rules on registered versions, and what devices measure of them."""
