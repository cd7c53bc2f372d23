"""The fields of requests and responses of /v1/messages."""
