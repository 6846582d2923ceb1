"""The server: REST, the layout of AUTOMATIC1111's interface, and access control. Never imports torch."""
