"""The server: REST, the layout of AUTOMATIC1111's interface, and who may come in. Never imports torch."""
